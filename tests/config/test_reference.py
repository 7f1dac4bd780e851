"""The reference of settings is complete and current."""

from pathlib import Path

from psann_jax.config.families import families
from psann_jax.config.io import default_config, flatten
from psann_jax.config.reference import groups, render_help, render_page

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_is_current():
    current = PAGE.read_text() == render_page()
    assert current, "python -m psann_jax.config.reference > docs/settings.md"


def test_every_setting_of_every_base_has_a_meaning():
    listed = {setting.name: setting for group in groups() for setting in group.settings}
    names = set().union(*(dict(flatten(default_config(base).to_dict())) for base in families()))
    assert set(listed) == names
    assert [name for name, setting in listed.items() if not setting.meaning] == []


def test_help_shows_every_setting_with_its_default():
    shown = render_help()
    assert "--config.train.lr=0.0002 " in shown
    assert "\n  --config.model.attention=auto" in shown
    assert all(f"--config.{setting.name}=" in shown for group in groups() for setting in group.settings)
    assert "type: ignore" not in shown
