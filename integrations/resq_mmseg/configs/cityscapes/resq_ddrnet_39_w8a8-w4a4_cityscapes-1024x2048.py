# Table 2, DDRNet-39 by PTQ. For W4A4->W3A3: --cfg-options resq.precision="W4A4->W3A3"
# MMSegmentation has no DDRNet-39 and its DDRNet class cannot be configured to it; resq_mmseg.DDRNet39 is that net.
_base_ = "./resq_ddrnet_23_w8a8-w4a4_cityscapes-1024x2048.py"

model = dict(
    backbone=dict(type="resq_mmseg.DDRNet39", init_cfg=None),
    decode_head=dict(channels=256),
)
