"""Video segmentation with MMSegmentation: datasets that keep clips together, pseudo-labels, the paper's recipes.

In a config the classes are found by scope, ``type='resq_mmseg.CityscapesSnippets'``; no ``custom_imports`` is needed.
"""

from resq_mmengine import mmcv_lite

mmcv_lite.install()
