# DDRNet-23-slim on the CamVid sequence 0016E5 (SegNet's selection): data/camvid/{calib,val} with {calib,val}annot.
_base_ = [
    "mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py",
    "../../../resq_mmengine/configs/_base_/resq_w8a8_w4a4.py",
]
data_root = "data/camvid"
pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]

model = dict(backbone=dict(init_cfg=None), decode_head=dict(num_classes=11))
resq = dict(
    calibration=dict(
        length=3,
        step=2,
        dataset=dict(
            type="resq_mmseg.CamVidSequence",
            data_root=data_root,
            data_prefix=dict(img_path="calib"),
            pipeline=pipeline,
        ),
    ),
)
default_hooks = dict(resq=dict(type="resq_mmengine.ResQHook", priority="VERY_HIGH"))
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(_delete_=True, type="resq_mmengine.ClipSampler"),
    dataset=dict(
        _delete_=True,
        type="resq_mmseg.CamVidSequence",
        data_root=data_root,
        data_prefix=dict(img_path="val", seg_map_path="valannot"),
        pipeline=pipeline,
    ),
)
val_dataloader = test_dataloader
test_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
val_evaluator = test_evaluator
