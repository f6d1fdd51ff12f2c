# Table 2, HRNet-w18-small by QAT.
# The original protocol but for the learning rate (§5.2): 4 GPUs with 3 windows of T frames each, 484 epochs of 2975
# snippets, online hard example mining. First make pseudo-labels for the frames that are not labelled:
#   python -m resq_mmseg.pseudo_labels LABELLER_CONFIG CHECKPOINT --data THIS_FILE --out data/cityscapes/pseudo/train
_base_ = "./resq_hrnet-w18-small_w4a4-w3a3_cityscapes-1024x2048.py"

crop_size = (512, 1024)
# The frames of a window are transformed alike; cat_max_ratio would crop them by their own labels.
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(2048, 1024), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=1.0),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    batch_size=3,
    sampler=dict(_delete_=True, type="resq_mmengine.ClipSampler", shuffle=True),
    batch_sampler=dict(type="resq_mmengine.IntervalBatchSampler"),
    dataset=dict(
        type="resq_mmseg.CityscapesSnippets",
        data_prefix=dict(img_path="leftImg8bit_sequence/train"),
        frames=(-2, 0),
        pseudo_label_dir="pseudo/train",
        pipeline=train_pipeline,
    ),
)
model = dict(
    _delete_=True,
    type="resq_mmengine.ResQModel",
    architecture=_base_.model,
    resq=_base_.resq,
    # Beside the original protocol: at 3 and 4 bits the ranges have to be learned, too (docs/training.md).
    learn_ranges=True,
    training=dict(weight_scales="learned"),
)
# The settings are in model.resq now: --cfg-options model.resq.interval=5
resq = None

optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(custom_keys={"quantizer": dict(decay_mult=0.0), "weight_scale": dict(decay_mult=0.0)}),
)
train_cfg = dict(max_iters=120000, val_interval=12000)
param_scheduler = [dict(type="PolyLR", eta_min=0, power=0.9, begin=0, end=120000, by_epoch=False)]
