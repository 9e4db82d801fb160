"""The commands of `cedm`, in the order of the data: what each is for, its settings, and what it makes."""

from dataclasses import dataclass

from pipeline.settings.schemas import (
    AssignSettings,
    AverageCommandSettings,
    BoundCommandSettings,
    ClustersSettings,
    EvaluateCommandSettings,
    ExportDatasetSettings,
    ExportSettings,
    GenerateCommandSettings,
    ImportEDMSettings,
    PublishSettings,
    ReportSettings,
    ScoreSettings,
    SharedSettings,
    StudyCommandSettings,
)


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        purpose: from what to what.
        schema: its typed settings; the YAML file of its name in `configs/` has the same keys.
        makes: kinds of artifacts that it writes, which the message about a missing one needs.
    """

    purpose: str
    schema: type[SharedSettings] = SharedSettings
    makes: tuple[str, ...] = ()


COMMANDS = {
    "embed": Command("images → embeddings and nearest neighbours, in the cache", makes=("embeddings", "neighbours")),
    "cluster": Command(
        "embeddings → pseudo-labels (TEMI, k-means, given labels, random groups, CLIP)",
        makes=("pseudo-labels", "clustering-head"),
    ),
    "score": Command("cluster ids → use of the clusters, agreement with labels, pictures", ScoreSettings),
    "assign": Command("a trained clustering head and new images → pseudo-labels", AssignSettings),
    "clusters": Command("the clusters of a run → one HTML page to look into and to name them", ClustersSettings),
    "bound": Command("embeddings → how many clusters are worth having", BoundCommandSettings),
    "train": Command("images and pseudo-labels → an EDM diffusion model", makes=("denoiser",)),
    "generate": Command("a trained model → images", GenerateCommandSettings),
    "evaluate": Command(
        "generated images and a data set → FID, FDD, KID, … and copies of training images", EvaluateCommandSettings
    ),
    "average": Command("the weights of a training → an average of any length", AverageCommandSettings),
    "export-dataset": Command("images and cluster ids → a data set for other people's trainers", ExportDatasetSettings),
    "study": Command("a question → the runs that answer it, tables, plots, a report", StudyCommandSettings),
    "report": Command("a run or a study → one HTML page", ReportSettings),
    "publish": Command("a trained model → a repository on the Hugging Face hub, with a model card", PublishSettings),
    "export": Command("a trained model → diffusers, ONNX or torch.export, without this package", ExportSettings),
    "import-edm": Command("a published EDM snapshot (.pkl) → a denoiser file", ImportEDMSettings),
}


def module_name(command: str) -> str:
    """The file of a command in `pipeline/commands`, and its function in there: `import_edm`."""
    return command.replace("-", "_")


def maker_of(kind: str) -> str | None:
    """The command that makes artifacts of this kind; None where no command does."""
    return next((name for name, command in COMMANDS.items() if kind in command.makes), None)
