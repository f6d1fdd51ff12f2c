"""What MMSegmentation and MMPose share: models from configurations, and the bridge to mmcv-lite."""
