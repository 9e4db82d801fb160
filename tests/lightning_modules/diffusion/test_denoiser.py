"""The denoiser's preconditioning, its images and its file."""

import pytest
import torch

from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.encoders import PixelEncoder
from lightning_modules.diffusion.network_settings import NetworkSettings
from storage.artifacts import write_artifact
from storage.errors import UserError

SETTINGS = NetworkSettings(model_channels=16, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[8], dropout=0.1)


@pytest.fixture
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    denoiser = Denoiser(SETTINGS, img_resolution=16, img_channels=3, label_dim=4, augment_dim=9)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return denoiser.eval()


def test_every_pixel_survives_the_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8)
    x = PixelEncoder().encode(pixels)
    assert (float(x.min()), float(x.max())) == (-1, 1)
    assert torch.equal(PixelEncoder().decode(x), pixels)


def test_out_of_range_images_are_clamped():
    assert PixelEncoder().decode(torch.tensor([-7.0, -1.01, 0.0, 0.999, 1.3])).tolist() == [0, 0, 128, 255, 255]


def test_preconditioning_limits(denoiser):
    """Without noise the image stays (c_skip = 1, c_out = 0); buried in noise it is not used at all (c_skip = 0)."""
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(denoiser(x, 1e-6), x, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        denoiser(1e6 * x, 1e6),
        0.5 * denoiser.model(x, torch.tensor([1e6, 1e6]).log() / 4, torch.zeros(2, 4), torch.zeros(2, 9)),
        rtol=0,
        atol=1e-4,
    )


def test_scalar_and_vector_noise_levels_agree(denoiser):
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(denoiser(x, 0.7), denoiser(x, torch.full((3,), 0.7, dtype=torch.float64)))


def test_double_precision_images_are_denoised_in_single_precision(denoiser):
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    assert denoiser(x, 0.7).dtype == torch.float32


@pytest.mark.parametrize("labels", [torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64)])
def test_labels_of_the_wrong_shape_are_refused(denoiser, labels):
    with pytest.raises(ValueError, match=r"class_labels have the shape .* expects \[2, 4\]"):
        denoiser(torch.randn(2, 3, 16, 16), 1.0, labels)


def test_file_round_trip(denoiser, tmp_path):
    denoiser.cluster_frequencies = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    denoiser.cluster_ids = torch.tensor([0, 3, 7, 8])
    denoiser.meta = {"dataset": "digits", "nimg": 0}
    denoiser.save_pretrained(tmp_path / "denoiser.safetensors", nimg=5000)

    loaded = Denoiser.from_pretrained(tmp_path)  # the folder of a run
    x, labels = torch.randn(2, 3, 16, 16), torch.eye(4)[:2]
    assert not loaded.training
    assert torch.equal(loaded(x, 0.5, labels), denoiser(x, 0.5, labels))
    assert loaded.cluster_frequencies.dtype == torch.float64
    assert torch.equal(loaded.cluster_frequencies, denoiser.cluster_frequencies)
    assert torch.equal(loaded.cluster_ids, denoiser.cluster_ids)
    assert loaded.meta == {"dataset": "digits", "nimg": 5000}
    assert loaded.settings == denoiser.settings
    assert (loaded.label_dim, loaded.augment_dim, loaded.img_resolution, loaded.objective.sigma_data) == (4, 9, 16, 0.5)


def test_a_folder_without_a_denoiser_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}/denoiser.safetensors"):
        Denoiser.from_pretrained(tmp_path)


def test_file_of_an_unconditional_denoiser(tmp_path):
    Denoiser(SETTINGS, 16, 3).save_pretrained(tmp_path / "denoiser.safetensors")
    loaded = Denoiser.from_pretrained(tmp_path / "denoiser.safetensors")
    assert loaded.cluster_frequencies is None
    assert loaded.cluster_ids is None


@pytest.mark.parametrize(
    ("clusters", "description"),
    [
        ({"cluster_frequencies": torch.tensor([0.5, -0.5, 1.0])}, {}),
        ({"cluster_frequencies": torch.tensor([float("nan"), 0.5, 0.5])}, {}),
        ({"cluster_frequencies": torch.zeros(3)}, {}),
        ({"cluster_frequencies": torch.ones(2)}, {}),
        ({"cluster_ids": torch.tensor([-1, 2, 5])}, {}),
        ({"cluster_ids": torch.tensor([0.5, 2, 5])}, {}),
        ({"cluster_ids": torch.arange(4)}, {}),
        ({}, {"sigma_data": "0.5"}),
        ({}, {"sigma_data": 0}),
    ],
)
def test_files_of_clusters_that_nothing_can_be_drawn_from(tmp_path, clusters, description):
    """As another program may write them, with the right checksum."""
    network = NetworkSettings("ddpmpp", model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[])
    denoiser = Denoiser(network, img_resolution=8, img_channels=1, label_dim=3)
    tensors = {"cluster_frequencies": torch.ones(3), "cluster_ids": torch.arange(3)}
    path = tmp_path / "denoiser.safetensors"
    write_artifact(path, "denoiser", {**denoiser.state_dict(), **tensors}, denoiser.description)
    assert Denoiser.from_pretrained(path).cluster_ids is not None
    content = {**denoiser.state_dict(), **tensors, **clusters}
    write_artifact(path, "denoiser", content, {**denoiser.description, **description})
    with pytest.raises(UserError, match="do not fit what the file says"):
        Denoiser.from_pretrained(path)
