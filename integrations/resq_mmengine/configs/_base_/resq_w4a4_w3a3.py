# Keyframes in 4 bits, residuals in 3. Use it beside a model-zoo base, with the hook in the child:
#   default_hooks = dict(resq=dict(type='resq_mmengine.ResQHook', priority='VERY_HIGH'))
resq = dict(precision="W4A4->W3A3", interval=3, reference="quantized")
