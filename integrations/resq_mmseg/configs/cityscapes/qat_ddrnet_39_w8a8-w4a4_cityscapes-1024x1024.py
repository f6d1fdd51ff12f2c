# Table 2, DDRNet-39 by QAT; see the config of DDRNet-23-slim.
_base_ = "./qat_ddrnet_23_w8a8-w4a4_cityscapes-1024x1024.py"

model = dict(architecture=dict(backbone=dict(type="resq_mmseg.DDRNet39"), decode_head=dict(channels=256)))
