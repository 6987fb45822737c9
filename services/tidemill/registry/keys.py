"""Where things lie in the key-value store; names sort as their resource names do."""

import hashlib

ROOT = "registry/"
HEAD = f"{ROOT}head"
"""Which events there are; every change compares and moves it."""
EVENTS = f"{ROOT}events/"
MODELS = f"{ROOT}models/"
VERSIONS = f"{ROOT}versions/"
ALIASES = f"{ROOT}aliases/"
REQUESTS = f"{ROOT}requests/"
INSTANCES = f"{ROOT}instances/"


def event(revision: int) -> str:
    """The event with this revision; 20 digits hold every 64-bit number."""
    return f"{EVENTS}{revision:020d}"


def model(name: str) -> str:
    """A model."""
    return f"{MODELS}{name}"


def versions(model: str) -> str:
    """What all versions of a model begin with."""
    return f"{VERSIONS}{model}/"


def version(model: str, number: int) -> str:
    """A version."""
    return f"{versions(model)}{number:020d}"


def aliases(model: str) -> str:
    """What all aliases of a model begin with."""
    return f"{ALIASES}{model}/"


def alias(model: str, name: str) -> str:
    """An alias."""
    return f"{aliases(model)}{name}"


def request(method: str, request_id: str) -> str:
    """What is remembered of a request; ids are free text, so their digest names them."""
    return f"{REQUESTS}{hashlib.sha256(f'{method}/{request_id}'.encode()).hexdigest()}"


def instances(service: str) -> str:
    """What all instances of a service begin with; "" = of every service."""
    return f"{INSTANCES}{service}." if service else INSTANCES


def instance(identifier: str) -> str:
    """An instance, by `{service}.{id}`."""
    return f"{INSTANCES}{identifier}"
