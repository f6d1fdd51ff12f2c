"""Video pose estimation with MMPose: datasets that keep clips and crops together, and the paper's recipes.

In a config the classes are found by scope, ``type='resq_mmpose.JhmdbVideo'``; no ``custom_imports`` is needed.
"""

from resq_mmengine import mmcv_lite

mmcv_lite.install()
