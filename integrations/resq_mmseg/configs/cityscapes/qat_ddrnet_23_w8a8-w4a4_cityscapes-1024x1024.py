# Table 2, DDRNet-23 by QAT; see the config of DDRNet-23-slim.
_base_ = "./qat_ddrnet_23-slim_w8a8-w4a4_cityscapes-1024x1024.py"

model = dict(
    architecture=dict(
        backbone=dict(channels=64, init_cfg=None),
        decode_head=dict(in_channels=256, channels=128),
    ),
)
