"""Operations that a recipe lists: ours, torchvision's and albumentations', in any order."""
