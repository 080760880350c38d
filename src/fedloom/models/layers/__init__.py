"""The PyTorch counterparts of Keras' layers: one literal table, layer class -> function that builds it."""

from __future__ import annotations

from fedloom.models import activations
from fedloom.models.fields import AUGMENTATIONS
from fedloom.models.layers import convolution, merging, noise, normalisation, pooling, shaping, weighted
from fedloom.models.layers.base import Builder, Layer, Piece, Weight

__all__ = ["BUILDERS", "Builder", "Layer", "Piece", "Weight"]

BUILDERS: dict[str, Builder] = {
    "Dense": weighted.dense,
    "Embedding": weighted.embedding,
    "PReLU": weighted.prelu,
    "Conv1D": convolution.conv,
    "Conv2D": convolution.conv,
    "DepthwiseConv1D": convolution.depthwise,
    "DepthwiseConv2D": convolution.depthwise,
    "SeparableConv1D": convolution.separable,
    "SeparableConv2D": convolution.separable,
    "BatchNormalization": normalisation.batch_norm,
    "LayerNormalization": normalisation.layer_norm,
    "Normalization": normalisation.normalization,
    "Rescaling": normalisation.rescaling,
    "MaxPooling1D": pooling.max_pool,
    "MaxPooling2D": pooling.max_pool,
    "AveragePooling1D": pooling.average_pool,
    "AveragePooling2D": pooling.average_pool,
    "GlobalMaxPooling1D": pooling.global_max,
    "GlobalMaxPooling2D": pooling.global_max,
    "GlobalAveragePooling1D": pooling.global_average,
    "GlobalAveragePooling2D": pooling.global_average,
    "Flatten": shaping.flatten,
    "Reshape": shaping.reshape,
    "Permute": shaping.permute,
    "ZeroPadding1D": shaping.zero_padding,
    "ZeroPadding2D": shaping.zero_padding,
    "Cropping1D": shaping.cropping,
    "Cropping2D": shaping.cropping,
    "UpSampling1D": shaping.up_sampling_1d,
    "UpSampling2D": shaping.up_sampling_2d,
    "Add": merging.add,
    "Subtract": merging.subtract,
    "Multiply": merging.multiply,
    "Average": merging.average,
    "Maximum": merging.maximum,
    "Minimum": merging.minimum,
    "Concatenate": merging.concatenate,
    "Dropout": noise.dropout,
    "SpatialDropout1D": noise.spatial_dropout,
    "SpatialDropout2D": noise.spatial_dropout,
    "GaussianDropout": noise.gaussian_dropout,
    "AlphaDropout": noise.alpha_dropout,
    "GaussianNoise": noise.gaussian_noise,
    "ActivityRegularization": shaping.identity,
    "Identity": shaping.identity,
    **dict.fromkeys((*activations.LAYERS, *AUGMENTATIONS), shaping.identity),
}
