"""What advertising platforms are called where people read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

PLATFORM_NAMES: Final[Mapping[str, tuple[str, str]]] = {
    "yandex_direct": ("Яндекс Директ", "Yandex Direct"),
    "vk_ads": ("VK Реклама", "VK Ads"),
    "yandex_metrika": ("Яндекс Метрика", "Yandex Metrika"),
}
"""By our word for a platform: its name in Russian and in English."""
