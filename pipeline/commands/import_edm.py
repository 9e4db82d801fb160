"""`cedm import-edm`: a published EDM snapshot → our denoiser file, without running code from it."""

import shlex
from pathlib import Path

import torch

from lightning_modules.diffusion.interop import denoiser_from_edm, read_edm_pickle
from pipeline.running.run_files import DENOISER
from pipeline.running.run_folder import choose_run_folder, opened_run_folder, run_settings, runs_of, write_summary
from pipeline.settings.door import program
from pipeline.settings.schemas import ImportEDMSettings
from pipeline.settings.words import word
from storage.digests import file_digest
from storage.errors import UserError
from storage.fingerprints import file_stem


def import_edm(settings: ImportEDMSettings) -> None:
    """Write a published network as a denoiser file."""
    path = Path(settings.pickle)
    if not path.is_file():
        settings.refuse("pickle", "no such file. Give a snapshot that EDM published, such as a .pkl file")
    try:
        published = read_edm_pickle(path)
        denoiser = denoiser_from_edm(published)
    except ValueError as error:
        raise UserError(f"pickle={path}: {error}") from error
    if denoiser.label_dim:  # labels are drawn uniformly; the file does not tell how often each class occurred
        denoiser.cluster_frequencies = torch.full((denoiser.label_dim,), 1 / denoiser.label_dim)
        denoiser.cluster_ids = torch.arange(denoiser.label_dim)
    denoiser.meta["label_dropout"] = published.label_dropout

    inputs, dataset = {"pickle": file_digest(path)}, file_stem(path.stem)
    run = run_settings(settings, inputs, ())
    folder = choose_run_folder(settings.run_dir, runs_of(dataset, "import-edm"), run, settings.overwrite)
    with opened_run_folder(folder, run, settings.overwrite):
        written = folder / DENOISER
        denoiser.save_pretrained(written, dataset=dataset, imported_from=inputs["pickle"])
        results = {
            "denoiser": str(written),
            "network": denoiser.settings.identity(),
            "img_resolution": denoiser.img_resolution,
            "img_channels": denoiser.img_channels,
            "label_dim": denoiser.label_dim,
            "label_dropout": published.label_dropout,
            "parameters": sum(parameter.numel() for parameter in denoiser.parameters()),
        }
        write_summary(folder, "import-edm", results, inputs)
    print(f"model       {written}\nNext: {shlex.join([program(), 'generate', word('ckpt', folder), 'num=64'])}")
