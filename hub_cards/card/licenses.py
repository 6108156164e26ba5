"""Licences of backbones as their own repositories state them."""

from collections.abc import Iterable

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled


def look_up_licenses(names: Iterable[str]) -> dict[str, str]:
    """Licence by Hub id; a backbone that cannot be asked, or that states none, is left out (the card says so)."""
    licenses = {}
    api = HfApi()
    for name in names:
        try:
            data = api.model_info(name).card_data
        except (HTTPError, OfflineModeIsEnabled):
            continue
        stated = None if data is None else data.get("license_name") or data.get("license")
        if stated:
            licenses[name] = str(stated)
    return licenses
