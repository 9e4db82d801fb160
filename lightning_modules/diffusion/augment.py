"""Non-leaky augmentation: the network is told the transform, so that it need not show in generated images.

The scheme of EDM (arXiv 2206.00364, appendix F.2), after "Training GANs with limited data" (arXiv 2006.06676,
appendix B): geometric transforms, resampled through an orthogonal wavelet so that they neither blur nor alias.

A transform is 8 parameters per image, in this order of application; y points down, angles turn counter-clockwise as
displayed:

    0, 1  x flip, y flip          0 or 1
    2     isotropic scale         s
    3     rotation angle          radians
    4, 5  anisotropic scale       a along the axis at this angle (radians), 1/a across it
    6, 7  shift in x, y           pixels
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from storage import philox
from storage.philox import Stream

AUGMENT_DIM = 9  # augmentation labels per image
LOG2_SCALE_STD = 0.2
SHIFT_STD = 0.125  # as a share of the image's size

# The low-pass filter of the wavelet sym6 (Daubechies 1992, "least asymmetric", 6 vanishing moments). Sum √2; its even
# shifts are orthonormal, therefore up- and downsampling without a transform between is the identity.
SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
CENTRE_TAP = 5


def draw_parameters(seed: int, positions: Tensor, probability: float, img_resolution: int) -> Tensor:
    """Random transforms `[B, 8]` of the images at these positions (int64 `[B]`) of the training stream.

    The x flip has probability ½. The y flip (a fair coin), the isotropic scale, the rotation, the anisotropic scale
    (along x half of the time) and the shift are each drawn with the given probability, independently.
    """
    u = philox.uniform(seed, Stream.AUGMENT_UNIFORM, positions, (10,)).unbind(1)
    n = philox.normal(seed, Stream.AUGMENT_NORMAL, positions, (4,)).unbind(1)
    y_flip, scaled, rotated, stretched, shifted = ((value < probability).float() for value in u[:5])
    angle, axis = (2 * math.pi * value - math.pi for value in u[5:7])
    along_any_axis = (u[7] < 0.5).float()
    return torch.stack(
        [
            (u[8] < 0.5).float(),
            y_flip * (u[9] < 0.5).float(),
            torch.exp2(LOG2_SCALE_STD * n[0] * scaled),
            angle * rotated,
            torch.exp2(LOG2_SCALE_STD * n[1] * stretched),
            axis * along_any_axis * stretched,
            SHIFT_STD * img_resolution * n[2] * shifted,
            SHIFT_STD * img_resolution * n[3] * shifted,
        ],
        dim=1,
    )


def apply(
    images: Tensor, parameters: Tensor, resample_all: bool | None = None, wavelet: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Transforms images; the pixels of images that are at most flipped stay exact.

    Args:
        images: `[B, C, H, W]` in [-1, 1], float.
        parameters: `[B, 8]`, see the top of this file.
        resample_all: Compute also what the exact pixels then replace. Not on a CPU; but a GPU has done it sooner than
            it has told how many images to leave out, for which everything else would have to wait. None: as suits.
        wavelet: SYM6 on the images' device, where it would else be copied in each call.

    Returns:
        The images and their augmentation labels `[B, 9]`, all zeros for an image that stays as it is.
    """
    parameters = parameters.to(images)
    wavelet = torch.tensor(SYM6, dtype=images.dtype, device=images.device) if wavelet is None else wavelet
    x_flip, y_flip = parameters[:, 0].reshape(-1, 1, 1, 1), parameters[:, 1].reshape(-1, 1, 1, 1)
    images = torch.where(x_flip == 1, images.flip(3), images)
    images = torch.where(y_flip == 1, images.flip(2), images)

    _, _, scale, angle, stretch, _, x_shift, y_shift = parameters.unbind(1)
    moved = (scale != 1) | (angle != 0) | (stretch != 1) | (x_shift != 0) | (y_shift != 0)  # [B]
    if resample_all or (resample_all is None and images.device.type != "cpu"):
        images = torch.where(moved.reshape(-1, 1, 1, 1), _resample(images, parameters, wavelet), images)
    elif len(rows := moved.nonzero().squeeze(1)):
        images = images.index_copy(0, rows, _resample(images[rows], parameters[rows], wavelet))
    return images, labels(parameters, *images.shape[2:])


def labels(parameters: Tensor, height: int, width: int) -> Tensor:
    """Augmentation labels `[B, 9]` of transforms `[B, 8]`: what the network is told, each of order 1."""
    x_flip, y_flip, scale, angle, stretch, axis, x_shift, y_shift = parameters.unbind(1)
    stretch = stretch.log2() / LOG2_SCALE_STD
    return torch.stack(
        [
            x_flip,
            y_flip,
            scale.log2() / LOG2_SCALE_STD,
            angle.cos() - 1,
            angle.sin(),
            stretch * axis.cos(),
            stretch * axis.sin(),
            x_shift / (SHIFT_STD * width),
            y_shift / (SHIFT_STD * height),
        ],
        dim=1,
    )


def _resample(images: Tensor, parameters: Tensor, wavelet: Tensor) -> Tensor:
    """Scale, rotation, anisotropic scale and shift of images `[B, C, H, W]` by their parameters `[B, 8]`."""
    with torch.autocast(images.device.type, enabled=False):  # half precision would round coordinates to whole pixels
        H, W = images.shape[2:]
        x_pad, y_pad = W - 1, H - 1  # mirrored surroundings
        source = F.pad(images, [x_pad, x_pad, y_pad, y_pad], mode="reflect")
        source = _upsample(source, wavelet)  # pixel p lies at 2 (p + pad)

        # The target at twice the resolution, with the margin that the filter needs: where does each point come from?
        margin = len(SYM6) - 2
        x = (torch.arange(2 * W + margin, device=images.device) - CENTRE_TAP) / 2  # pixels
        y = (torch.arange(2 * H + margin, device=images.device) - CENTRE_TAP) / 2
        x_centre, y_centre = (W - 1) / 2, (H - 1) / 2
        x, y = torch.meshgrid(x - x_centre, y - y_centre, indexing="xy")  # [2H + 10, 2W + 10] each
        x_from, y_from = _origin(x, y, parameters)
        x_from, y_from = 2 * (x_from + x_centre + x_pad), 2 * (y_from + y_centre + y_pad)

        extent = source.shape[3] - 1, source.shape[2] - 1
        grid = torch.stack([2 * x_from / extent[0] - 1, 2 * y_from / extent[1] - 1], dim=-1)
        target = F.grid_sample(source, grid.to(source), mode="bilinear", padding_mode="zeros", align_corners=True)
        return _downsample(target, wavelet)


def _origin(x: Tensor, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Where points x, y `[H, W]` of the target come from, `[B, H, W]` each: the transforms undone, last one first."""
    _, _, scale, angle, stretch, axis, x_shift, y_shift = parameters.reshape(-1, 8, 1, 1).unbind(1)
    x, y = x - x_shift, y - y_shift
    x, y = _rotate(x, y, -axis)
    x, y = x / stretch, y * stretch
    x, y = _rotate(x, y, axis - angle)
    return x / scale, y / scale


def _rotate(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Counter-clockwise as displayed, with y pointing down."""
    return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()


def _upsample(images: Tensor, wavelet: Tensor) -> Tensor:
    """`[B, C, H, W]` to `[B, C, 2H, 2W]`; pixel p comes to lie at 2p."""
    kernel = math.sqrt(2) * wavelet
    x = images.flatten(0, 1).unsqueeze(1)  # [B·C, 1, H, W]
    x = F.conv_transpose2d(x, kernel.reshape(1, 1, -1, 1), stride=(2, 1), padding=(CENTRE_TAP, 0))
    x = F.conv_transpose2d(x, kernel.reshape(1, 1, 1, -1), stride=(1, 2), padding=(0, CENTRE_TAP))
    return x.reshape(*images.shape[:2], *x.shape[2:])


def _downsample(images: Tensor, wavelet: Tensor) -> Tensor:
    """`[B, C, 2H + 10, 2W + 10]` to `[B, C, H, W]`; what lies at 2p + 5 becomes pixel p."""
    kernel = wavelet / math.sqrt(2)
    x = images.flatten(0, 1).unsqueeze(1)  # [B·C, 1, 2H + 10, 2W + 10]
    x = F.conv2d(x, kernel.reshape(1, 1, -1, 1), stride=(2, 1))
    x = F.conv2d(x, kernel.reshape(1, 1, 1, -1), stride=(1, 2))
    return x.reshape(*images.shape[:2], *x.shape[2:])
