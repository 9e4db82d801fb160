"""How the files of the house may depend on one another, beside the import contracts of pyproject.toml."""

import grimp
import networkx
import pytest

PACKAGES = ("pipeline", "callbacks", "lightning_modules", "datamodules", "metrics", "storage")
TABLES = ("pipeline.evaluation.metrics_table", "pipeline.running.run_files")  # which settings are checked against


@pytest.fixture(scope="module")
def imports() -> networkx.DiGraph:
    """File → file, imports for type checking among them."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=False)
    return networkx.DiGraph((a, b) for a in graph.modules for b in graph.find_modules_directly_imported_by(a))


def test_no_files_import_one_another_in_a_circle(imports: networkx.DiGraph):
    assert [found for found in networkx.strongly_connected_components(imports) if len(found) > 1] == []


def test_the_door_knows_the_rooms_settings_and_nothing_else_of_them(imports: networkx.DiGraph):
    """So that a mistake and `--help` are answered without importing what the rooms work with."""
    rooms = ("pipeline.running", "pipeline.evaluation", "pipeline.studies", "datamodules", "lightning_modules")
    known = {b for a, b in imports.edges if a.startswith("pipeline.settings.") and b.startswith(rooms)}
    assert known
    assert all(module.endswith("_settings") or module in TABLES for module in known)


def test_init_files_import_nothing(imports: networkx.DiGraph):
    packages = {module.rpartition(".")[0] for module in imports.nodes if "." in module}
    assert [package for package in packages if package in imports and imports.out_degree(package)] == []
