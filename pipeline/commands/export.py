"""`cedm export`: a trained model → a folder that other libraries load without this package."""

from lightning_modules.diffusion.denoiser import Denoiser
from pipeline.evaluation.sampling import known_clusters
from pipeline.running.exported import FORMATS
from pipeline.running.run_files import denoiser_file
from pipeline.settings.schemas import ExportSettings
from storage.files import atomic_path


def export(settings: ExportSettings) -> None:
    """Write the folder, whole or not at all."""
    file = denoiser_file(settings.run, "run")
    denoiser = Denoiser.from_pretrained(file)
    if denoiser.label_dim:
        known_clusters(denoiser, file)
    written = FORMATS[settings.format]
    with atomic_path(settings.place) as temporary:
        temporary.mkdir()
        written.write(denoiser, temporary)
    print(f"model       {settings.place}\nRead by     {written.read_by.format(settings.place)}")
