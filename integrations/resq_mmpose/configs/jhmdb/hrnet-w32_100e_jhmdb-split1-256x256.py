# HRNet-w32 fine-tuned on JHMDB as in §5.1: from MPII weights, 100 epochs, Adam, 16 images, learning rate 1e-3, divided
# by 10 at epochs 40 and 80; scaling, rotation, flipping, cropping. The 316 clips of sub-JHMDB, split 1.
_base_ = "mmpose::body_2d_keypoint/topdown_heatmap/mpii/td-hm_hrnet-w32_8xb64-210e_mpii-256x256.py"

load_from = "https://download.openmmlab.com/mmpose/top_down/hrnet/hrnet_w32_mpii_256x256-6c4f923f_20200812.pth"
# The flip test runs the network twice per frame, which a video cannot.
model = dict(head=dict(out_channels=15), test_cfg=dict(flip_test=False))

train_cfg = dict(max_epochs=100, val_interval=10)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [dict(type="MultiStepLR", begin=0, end=100, milestones=[40, 80], gamma=0.1, by_epoch=True)]
auto_scale_lr = dict(base_batch_size=16)

train_pipeline = [
    dict(type="LoadImage"),
    dict(type="GetBBoxCenterScale"),
    dict(type="RandomFlip", direction="horizontal"),
    dict(type="RandomBBoxTransform", rotate_factor=60, scale_factor=(0.75, 1.25)),
    dict(type="TopdownAffine", input_size=(256, 256)),
    dict(type="GenerateTarget", encoder=_base_.codec),
    dict(type="PackPoseInputs"),
]
train_dataloader = dict(
    batch_size=16,
    dataset=dict(
        _delete_=True,
        type="resq_mmpose.JhmdbVideo",
        data_root="data/jhmdb/",
        data_prefix=dict(splits="sub_splits"),
        split=1,
        subset="train",
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    sampler=dict(_delete_=True, type="resq_mmengine.ClipSampler"),
    dataset=dict(
        _delete_=True,
        type="resq_mmpose.JhmdbVideo",
        data_root="data/jhmdb/",
        data_prefix=dict(splits="sub_splits"),
        split=1,
        subset="test",
        test_mode=True,
        pipeline=_base_.val_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type="JhmdbPCKAccuracy", thr=0.2, norm_item="bbox")
test_evaluator = val_evaluator
