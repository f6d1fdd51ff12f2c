"""What MMSegmentation and MMPose share: models, hook, samplers and training on video.

Importing it bridges to mmcv-lite (see `mmcv_lite`), so that ``custom_imports = dict(imports=['resq_mmengine'])`` is
all that a toolkit's own tools need where mmcv has no compiled operators.
"""

from importlib.util import find_spec

from resq_mmengine import mmcv_lite

if find_spec("mmcv") is not None:
    mmcv_lite.install()
