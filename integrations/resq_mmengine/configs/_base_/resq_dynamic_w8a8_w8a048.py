# Dynamic-ResQ: keyframes in 8 bits, residuals in 0, 4 or 8 per pixel (§4.2). Use it beside a model-zoo base, with the
# hook in the child:
#   default_hooks = dict(resq=dict(type='resq_mmengine.ResQHook', priority='VERY_HIGH'))
resq = dict(precision="W8A8->W8A{0,4,8}", interval=3, policy=dict(threshold=0.1, normalize="layer"))
