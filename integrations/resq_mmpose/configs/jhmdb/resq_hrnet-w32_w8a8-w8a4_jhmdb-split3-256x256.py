# Table 1 and Fig. 5 (left), ResQ on HRNet-w32 by PTQ, split 3; the paper reports the mean of the three splits.
#   T sweep           --cfg-options resq.interval=2    (3, 4, ...)
#   Fig. 5 (right)    --cfg-options resq.precision="W8A4->W8A3"
#   Frame             --cfg-options resq.precision="W8A8"    ("W8A4", "W8A3")
# Table 1 names neither the precision nor T of its 384 GBOPs.
_base_ = "./hrnet-w32_100e_jhmdb-split3-256x256.py"

load_from = None
resq = dict(
    precision="W8A8->W8A4",
    interval=3,
    calibration=dict(
        samples=64,
        candidates=20,
        dataset=dict(
            type="resq_mmpose.JhmdbVideo",
            data_root="data/jhmdb/",
            data_prefix=dict(splits="sub_splits"),
            split=3,
            subset="train",
            test_mode=True,
            pipeline=_base_.val_pipeline,
        ),
    ),
)
default_hooks = dict(resq=dict(type="resq_mmengine.ResQHook", priority="VERY_HIGH"))
