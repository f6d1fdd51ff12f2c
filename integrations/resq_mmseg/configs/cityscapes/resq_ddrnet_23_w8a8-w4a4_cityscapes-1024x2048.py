# Table 2, DDRNet-23 by PTQ. For W4A4->W3A3: --cfg-options resq.precision="W4A4->W3A3"
_base_ = "mmseg::ddrnet/ddrnet_23_in1k-pre_2xb6-120k_cityscapes-1024x1024.py"

resq = dict(
    precision="W8A8->W4A4",
    interval=3,
    weights="channel",
    calibration=dict(
        samples=64,
        candidates=20,
        dataset=dict(
            type="resq_mmseg.CityscapesSnippets",
            data_root="data/cityscapes/",
            data_prefix=dict(img_path="leftImg8bit_sequence/train", seg_map_path="gtFine/train"),
            frames=(-2, 0),
            pipeline=_base_.test_pipeline,
        ),
    ),
)
default_hooks = dict(resq=dict(type="resq_mmengine.ResQHook", priority="VERY_HIGH"))
# 20th frame of a snippet and the frames before it: all that T = 3 visits.
test_dataloader = dict(
    sampler=dict(_delete_=True, type="resq_mmengine.ClipSampler"),
    dataset=dict(
        type="resq_mmseg.CityscapesSnippets",
        data_prefix=dict(img_path="leftImg8bit_sequence/val"),
        frames=(-2, 0),
        test_mode=True,
    ),
)
val_dataloader = test_dataloader
