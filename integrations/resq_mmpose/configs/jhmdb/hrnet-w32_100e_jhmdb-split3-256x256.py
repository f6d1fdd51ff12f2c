# As split 1.
_base_ = "./hrnet-w32_100e_jhmdb-split1-256x256.py"

train_dataloader = dict(dataset=dict(split=3))
val_dataloader = dict(dataset=dict(split=3))
test_dataloader = val_dataloader
