"""`cedm publish`: a trained model → a repository on the Hugging Face hub, with a model card."""

from pathlib import Path

from pipeline.evaluation.sampling import Sampler
from pipeline.running.devices import device_of
from pipeline.running.finished_run import read_any_summary, settings_of
from pipeline.running.publication import write_publication
from pipeline.settings.schemas import PublishSettings
from storage.hub import push


def publish(settings: PublishSettings) -> None:
    """Write the files that the repository will hold, and push them."""
    folder = Path(settings.run)
    summary = read_any_summary(folder)
    if summary["command"] != "train":
        settings.refuse("run", f"a run of `{summary['command']}`. Give the folder of a run of train")
    scores = None if settings.scores is None else read_any_summary(Path(settings.scores))
    if scores is not None and scores["command"] != "evaluate":
        settings.refuse("scores", f"a run of `{scores['command']}`. Give the folder of a run of evaluate")
    sampler = Sampler(settings_of(folder, summary).sampler.while_training)
    device = device_of(settings.trainer.accelerator)
    repo = settings.repo or "USER/NAME"
    files = write_publication(folder, summary, scores, sampler, device, repo, settings.images_license)
    print(f"files       {', '.join(map(str, files))}")
    if not settings.dry_run:
        print(f"pushed to   {push(files, repo, settings.private)}")
