"""The registry's models and aliases as far as they are known here."""


class View:
    """Models, and what their aliases point at."""

    def __init__(self) -> None:
        self._aliases: dict[str, dict[str, int]] = {}
        self._dropped: set[str] = set()

    @property
    def pointed(self) -> set[tuple[str, int]]:
        """Each model and number that an alias points at."""
        return {(model, number) for model, mine in self._aliases.items() for number in mine.values()}

    @property
    def aliases(self) -> dict[str, dict[str, int]]:
        """For each model its aliases, and the number that each points at: a copy."""
        return {model: dict(mine) for model, mine in self._aliases.items()}

    def take_dropped(self) -> set[str]:
        """Models dropped since this was last asked: one that is there again has other versions of the same numbers."""
        dropped, self._dropped = self._dropped, set()
        return dropped

    def set_model(self, model: str) -> None:
        """The model exists."""
        self._aliases.setdefault(model, {})

    def drop_model(self, model: str) -> None:
        """The model is gone, with its versions and aliases."""
        self._aliases.pop(model, None)
        self._dropped.add(model)

    def set_alias(self, model: str, alias: str, number: int) -> None:
        """The alias points at this version."""
        self._aliases.setdefault(model, {})[alias] = number

    def drop_alias(self, model: str, alias: str) -> None:
        """The alias is gone."""
        self._aliases.get(model, {}).pop(alias, None)
