"""Which classes a recipe may name: a stranger may have written it, so nothing else is imported.

None of them reads a file, calls a function that a recipe names, or keeps state from one image to the next.
"""

from __future__ import annotations

TORCHVISION, ALBUMENTATIONS = "torchvision.transforms.v2", "albumentations"

# classes that hold other operations in their argument `transforms`
CONTAINERS = {
    TORCHVISION: ("RandomApply", "RandomChoice", "RandomOrder"),
    ALBUMENTATIONS: ("OneOf", "RandomOrder", "Sequential", "SomeOf"),
}
ALLOWED = {
    # not ElasticTransform: in torchvision 0.25 it fails on boxes that end at the edge of the image
    TORCHVISION: (
        *CONTAINERS[TORCHVISION],
        "CenterCrop", "ColorJitter", "GaussianBlur", "GaussianNoise", "Grayscale", "JPEG", "Pad",
        "RandomAdjustSharpness", "RandomAffine", "RandomAutocontrast", "RandomChannelPermutation", "RandomCrop",
        "RandomEqualize", "RandomErasing", "RandomGrayscale", "RandomHorizontalFlip", "RandomInvert", "RandomIoUCrop",
        "RandomPerspective", "RandomPhotometricDistort", "RandomPosterize", "RandomResize", "RandomResizedCrop",
        "RandomRotation", "RandomShortestSize", "RandomSolarize", "RandomVerticalFlip", "RandomZoomOut", "Resize",
        "ScaleJitter",
    ),
    ALBUMENTATIONS: (
        *CONTAINERS[ALBUMENTATIONS],
        "AdditiveNoise", "AdvancedBlur", "Affine", "AtLeastOneBBoxRandomCrop", "AutoContrast", "BBoxSafeRandomCrop",
        "Blur", "CLAHE", "CenterCrop", "ChannelDropout", "ChannelShuffle", "ChromaticAberration", "CoarseDropout",
        "ColorJitter", "ConstrainedCoarseDropout", "Crop", "CropAndPad", "D4", "Defocus", "Downscale",
        "ElasticTransform", "Emboss", "Equalize", "Erasing", "FancyPCA", "GaussNoise", "GaussianBlur", "GlassBlur",
        "GridDistortion", "GridDropout", "GridElasticDeform", "HEStain", "HorizontalFlip", "HueSaturationValue",
        "ISONoise", "Illumination", "ImageCompression", "InvertImg", "LongestMaxSize", "MedianBlur", "Morphological",
        "MotionBlur", "MultiplicativeNoise", "OpticalDistortion", "Pad", "PadIfNeeded", "Perspective",
        "PiecewiseAffine", "PixelDropout", "PlanckianJitter", "PlasmaBrightnessContrast", "PlasmaShadow", "Posterize",
        "RGBShift", "RandomBrightnessContrast", "RandomCrop", "RandomCropFromBorders", "RandomFog", "RandomGamma",
        "RandomGravel", "RandomRain", "RandomResizedCrop", "RandomRotate90", "RandomScale", "RandomShadow",
        "RandomSizedBBoxSafeCrop", "RandomSizedCrop", "RandomSnow", "RandomSunFlare", "RandomToneCurve", "Resize",
        "RingingOvershoot", "Rotate", "SafeRotate", "SaltAndPepper", "Sharpen", "ShiftScaleRotate", "ShotNoise",
        "SmallestMaxSize", "Solarize", "Spatter", "SquareSymmetry", "Superpixels", "ThinPlateSpline", "ToGray",
        "ToSepia", "Transpose", "UnsharpMask", "VerticalFlip", "XYMasking", "ZoomBlur",
    ),
}  # fmt: skip

_MOVES = "it moves the pixels and leaves the boxes where they were"
_NORMALIZES = "the network's input is normalised by input.mean and input.std, after all operations"
_ONE_IMAGE = "it needs other images; `dense_o2o` mixes images (mosaic, mixup, copy_blend)"
_STRANGERS = "it runs a function or reads a file, which a recipe must not"
_SPLITS = "it makes several images of one"
# why others are not there, by name
REFUSED = {
    **dict.fromkeys(
        ("AutoAugment", "RandAugment", "TrivialAugmentWide", "AugMix", "RandomGridShuffle"), _MOVES
    ),
    **dict.fromkeys(
        ("Normalize", "ToDtype", "ToFloat", "FromFloat", "ToTensor", "ToTensorV2", "ToImage", "ToPILImage",
         "PILToTensor", "ConvertImageDtype", "ToPureTensor", "ConvertBoundingBoxFormat"), _NORMALIZES
    ),
    **dict.fromkeys(
        ("CutMix", "MixUp", "Mosaic", "FDA", "HistogramMatching", "PixelDistributionAdaptation", "OverlayElements",
         "TemplateTransform"), _ONE_IMAGE
    ),
    **dict.fromkeys(("Lambda", "TextImage", "LinearTransformation"), _STRANGERS),
    **dict.fromkeys(("FiveCrop", "TenCrop", "UniformTemporalSubsample"), _SPLITS),
    **dict.fromkeys(
        ("SanitizeBoundingBoxes", "ClampBoundingBoxes"),
        "objects that an operation leaves without area are dropped after each",
    ),
    **dict.fromkeys(("Compose",), "the list itself is one"),
}  # fmt: skip
