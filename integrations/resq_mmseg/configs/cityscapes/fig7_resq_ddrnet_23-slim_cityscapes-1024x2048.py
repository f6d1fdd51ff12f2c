# Fig. 7, ResQ and Frame Quantization on DDRNet-23-slim, one scale per weight tensor (§5). The points of the figure:
#   ResQ    --cfg-options resq.precision="W8A8->W4A8" resq.interval=2    (3, 4, 5; and "W8A8->W4A4")
#   frame   --cfg-options resq.precision="W4A8"                          ("W8A8", "W4A4")
_base_ = "./resq_ddrnet_23-slim_w8a8-w4a4_cityscapes-1024x2048.py"

resq = dict(
    precision="W8A8->W4A8",
    weights="tensor",
    calibration=dict(dataset=dict(frames=(-4, 0))),
)
test_dataloader = dict(dataset=dict(frames=(-4, 0)))
val_dataloader = test_dataloader
