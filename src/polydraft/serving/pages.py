"""The page at `/`: the files of the folder `page`, which come with the package."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse

FOLDER = Path(__file__).parent / "page"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""The page loads nothing from elsewhere, and runs nothing that is not a file of its own."""
KINDS = {".html", ".css", ".js", ".svg", ".png", ".ico", ".json", ".woff2"}


def install(app: FastAPI) -> None:
    """Serve every file under its own path, and `index.html` at `/`."""
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file() and path.suffix in KINDS:
            _serve(app, "/" + path.relative_to(FOLDER).as_posix(), path)
    _serve(app, "/", FOLDER / "index.html")


def _serve(app: FastAPI, route: str, path: Path) -> None:
    async def file() -> FileResponse:
        return FileResponse(path, headers=HEADERS)

    app.add_api_route(route, file, methods=["GET"], include_in_schema=False)
