"""The model-zoo configurations that the tests convert, calibrate and stream, by the names of their nets."""

from __future__ import annotations

__all__ = ["TESTED"]

TESTED = {
    "DDRNet-23-slim": "mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py",
    "DDRNet-23": "mmseg::ddrnet/ddrnet_23_in1k-pre_2xb6-120k_cityscapes-1024x1024.py",
    "HRNet-w18-small (FCN)": "mmseg::hrnet/fcn_hr18s_4xb2-40k_cityscapes-512x1024.py",
    "Fast-SCNN": "mmseg::fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py",
    "BiSeNetV2": "mmseg::bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py",
    "PIDNet-S": "mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py",
    "STDC1": "mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py",
    "ERFNet": "mmseg::erfnet/erfnet_fcn_4xb4-160k_cityscapes-512x1024.py",
    "PSPNet-R50": "mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py",
    "DeepLabV3+-R18": "mmseg::deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py",
    "SegFormer-B0": "mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py",
    "U-Net": "mmseg::unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py",
    "HRNet-w32": "mmpose::body_2d_keypoint/topdown_heatmap/mpii/td-hm_hrnet-w32_8xb64-210e_mpii-256x256.py",
    "ResNet-50": "mmpose::body_2d_keypoint/topdown_heatmap/jhmdb/td-hm_res50_8xb64-20e_jhmdb-sub1-256x256.py",
    "MobileNetV2": "mmpose::body_2d_keypoint/topdown_heatmap/coco/td-hm_mobilenetv2_8xb64-210e_coco-256x192.py",
    "LiteHRNet-18": "mmpose::body_2d_keypoint/topdown_heatmap/coco/td-hm_litehrnet-18_8xb64-210e_coco-256x192.py",
    "RTMPose-s": "mmpose::body_2d_keypoint/rtmpose/coco/rtmpose-s_8xb256-420e_coco-256x192.py",
}
