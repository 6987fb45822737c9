"""One descriptor pool for gRPC reflection on a server whose services come from several pools.

Contracts of others (`tidemill.api.compat`) are registered in a private pool, our own in the process's default one, and
the reflection servicer looks in one only.
"""

from collections.abc import Iterable

from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool


def reflection_pool(services: Iterable[ServiceDescriptor]) -> DescriptorPool:
    """A new pool with the files of all the services and what these import.

    It only describes: messages still come from the generated modules. Raises TypeError when two of the services
    define the same name differently.
    """
    pool = DescriptorPool()
    added: set[str] = set()
    for service in services:
        _add(pool, service.file, added)
    return pool


def _add(pool: DescriptorPool, file: FileDescriptor, added: set[str]) -> None:
    if file.name in added:
        return
    added.add(file.name)
    for dependency in file.dependencies:
        _add(pool, dependency, added)
    pool.AddSerializedFile(file.serialized_pb)
