# Fig. 5 (right), Dynamic-ResQ with 0, 3 and 4 bits on HRNet-w32 by PTQ, split 1.
# T sweep: --cfg-options resq.interval=2
_base_ = "./dynamic_hrnet-w32_w8a8-w8a048_jhmdb-split1-256x256.py"

resq = dict(precision="W8A8->W8A{0,3,4}")
