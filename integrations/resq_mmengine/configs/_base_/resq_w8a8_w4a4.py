# Keyframes in 8 bits, residuals in 4 (Table 2). Use it beside a model-zoo base, with the hook in the child:
#   default_hooks = dict(resq=dict(type='resq_mmengine.ResQHook', priority='VERY_HIGH'))
resq = dict(precision="W8A8->W4A4", interval=3)
