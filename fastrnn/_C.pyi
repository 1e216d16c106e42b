from typing import TypedDict

class BuildInfo(TypedDict):
    version: str
    torch: str
    cuda: str | None
    cuda_archs: list[str]
    without_cuda: str | None
    compiler: str

def build_info() -> BuildInfo: ...
def cpu_features() -> list[str]: ...
