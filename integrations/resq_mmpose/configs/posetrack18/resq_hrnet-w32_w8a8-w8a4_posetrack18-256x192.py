# Several persons per video: HRNet-w32 on the labelled tracks of PoseTrack18, four persons in step.
_base_ = "mmpose::body_2d_keypoint/topdown_heatmap/posetrack18/td-hm_hrnet-w32_8xb64-20e_posetrack18-256x192.py"

model = dict(test_cfg=dict(flip_test=False))
resq = dict(
    precision="W8A8->W8A4",
    interval=3,
    calibration=dict(
        samples=64,
        dataset=dict(
            type="resq_mmpose.PoseTrackVideo",
            data_root="data/posetrack18/",
            ann_file="annotations/posetrack18_train.json",
            test_mode=True,
            pipeline=_base_.val_pipeline,
        ),
    ),
)
default_hooks = dict(
    resq=dict(type="resq_mmengine.ResQHook", priority="VERY_HIGH"),
    checkpoint=dict(save_best="PCK"),
)
test_dataloader = dict(
    batch_size=4,
    drop_last=False,
    sampler=dict(_delete_=True, type="resq_mmengine.ClipSampler"),
    batch_sampler=dict(type="resq_mmengine.ClipBatchSampler"),
    dataset=dict(
        _delete_=True,
        type="resq_mmpose.PoseTrackVideo",
        data_root="data/posetrack18/",
        ann_file="annotations/posetrack18_val.json",
        test_mode=True,
        pipeline=_base_.val_pipeline,
    ),
)
val_dataloader = test_dataloader
val_evaluator = dict(_delete_=True, type="PCKAccuracy", thr=0.2, norm_item="bbox")
test_evaluator = val_evaluator
load_from = None
