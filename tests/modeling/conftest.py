"""Tiny pretrained backbones in folders."""

import pytest


@pytest.fixture(scope="session")
def backbones(tmp_path_factory):
    """Folders of tiny pretrained backbones, see `backbone_folders.py`."""
    from backbone_folders import BackboneFolders

    return BackboneFolders(tmp_path_factory.mktemp("backbones"))
