"""The version guard."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from resq_brevitas._compat import check_version

from resq_plugin.errors import ConversionError


@pytest.mark.parametrize("found", ["0.13.4", "0.13.5", "0.13.4+cpu", version("brevitas")])
def test_tested_versions_pass(found: str) -> None:
    check_version(found)


@pytest.mark.parametrize("found", ["0.12.1", "0.13.3", "0.14.0", "0.14.0a1", "1.0"])
def test_other_versions_name_the_line_to_install(found: str) -> None:
    with pytest.raises(ConversionError, match=rf'brevitas {found} is not.*pip install "brevitas>=0\.13\.4,<0\.14"'):
        check_version(found)
