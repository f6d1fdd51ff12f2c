# Fig. 9, mIoU by distance from the keyframe, up to 10: the metrics mIoU_t0 to mIoU_t10. The paper evaluates the
# network after QAT: load its checkpoint (qat_ddrnet_23-slim_w8a8-w4a4_...), whose ranges then stay as trained.
_base_ = "./resq_ddrnet_23-slim_w8a8-w4a4_cityscapes-1024x2048.py"

resq = dict(interval=11, calibration=dict(dataset=dict(frames=(-10, 0))))
test_dataloader = dict(dataset=dict(frames=(-10, 0)))
val_dataloader = test_dataloader
