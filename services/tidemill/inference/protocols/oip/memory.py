"""Tensors of requests and answers that lie in shared memory."""

from dataclasses import dataclass

from tidemill.errors import Invalid, Unimplemented
from tidemill.inference.inputs import shown
from tidemill.inference.protocols.oip import parameters
from tidemill.inference.protocols.oip.parameters import Parameters
from tidemill.inference.sharedmemory.regions import Region, Regions

REGION = "shared_memory_region"
OFFSET = "shared_memory_offset"
SIZE = "shared_memory_byte_size"


@dataclass(frozen=True, slots=True)
class Place:
    """A part of a region. One for an output keeps its region in use until `release`."""

    region: Region
    offset: int
    size: int

    def __len__(self) -> int:
        return self.size

    def read(self) -> bytes:
        """Its bytes. The region is in use for so long only. Raises TidemillError."""
        return self.region.read(self.offset, self.size)

    def write(self, data: bytes, output: str) -> None:
        """Put an output there. Raises Invalid."""
        if len(data) > self.size:
            raise Invalid(
                f"shared memory size specified with the request for output '{output}' ({self.size} bytes) should be "
                f"at least {len(data)} bytes to hold the results",
                reason="REGION_TOO_SMALL",
            )
        self.region.write(self.offset, data)

    def release(self) -> None:
        """End the use."""
        self.region.release()


def place(found: Parameters, regions: Regions | None, tensor: str) -> Place:
    """Where the tensor with these parameters lies; its region is in use until the place is released.

    Raises:
        Invalid: parameters are wrong or missing, or the place is not within the region.
        NotFound: there is no such region.
        Unimplemented: there is no shared memory here.
    """
    name = parameters.text(found, REGION)
    size = parameters.number(found, SIZE)
    offset = parameters.number(found, OFFSET) or 0
    if size is None:
        raise Invalid(f"'{SIZE}' parameter must be given for '{shown(tensor)}'", reason="WRONG_PARAMETER")
    if regions is None:
        raise unserved()
    region = regions.use(name)
    try:
        region.check(offset, size)
    except BaseException:
        region.release()
        raise
    return Place(region, offset, size)


def unserved() -> Unimplemented:
    """What clients are told where there is no shared memory."""
    return Unimplemented(
        "shared memory is not enabled on this server: start it with --allow-client-shm", reason="SHARED_MEMORY_OFF"
    )
