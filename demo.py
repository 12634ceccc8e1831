"""A local web page that puts the noise of one photo on another, and takes it away again.

    python demo.py                      # `make demo` installs what it needs first
    python demo.py --port 7860 --nt ckpts/NT --gpu cpu

It shows the clean photo with the other's noise beside white noise of the same strength, crops at
1:1, histograms and noise levels; denoises the result; and hands out both as lossless PNG. Photos
are read and computed as transfer_noise.py and denoise.py do it: of any size, by tiles.

The page is served to this computer alone and asks nothing of any other. What was uploaded and made
is removed when the script ends.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.config import beside, choose_device, parse
from utils.errors import UserError, exit_on_user_error, require

if TYPE_CHECKING:  # gradio and torch take seconds to import: --help does not wait for them
    import gradio as gr
    import numpy as np

    from evaluation.photo_section import Result

SEED = 0
AT_ONCE = 3 * 2**21  # values of a photo that follows the slider; larger ones wait for the button
Progress = Callable[..., object]  # gradio's: the share of the work that is done, and what it is


@dataclass(frozen=True)
class Config:
    """A local web page that puts the noise of one photo on another."""

    port: int = 7860
    """The page is at http://127.0.0.1:PORT."""
    nt: Path = Path("ckpts/NT")
    """Folder of VUNet.pt and encoder_k.pt."""
    denoiser: Path = Path("ckpts/sidd/ridnet_g.pt")
    """Weights of a denoiser, as denoise.py takes them."""
    gpu: str = "0"
    """CUDA device number (of a list such as 0,1 the first is used), or cpu."""


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    require(0 < c.port < 65536, f"--port {c.port}: expected 1 to 65535")

    def leave(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # make sends it twice: the folder is to be removed
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    with tempfile.TemporaryDirectory(prefix="noisetransfer_") as folder:
        # Read when gradio is imported.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}
        try:
            import gradio as gr
        except ModuleNotFoundError as error:
            raise UserError("demo.py needs gradio: pip install -r requirements-demo.txt") from error
        from evaluation.photo_section import STYLE

        theme = gr.themes.Default(
            primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]
        ).set(button_primary_background_fill="*primary_600")  # white on it can be read
        built = page(Networks(c), Path(folder))
        try:
            built.launch(
                server_name="127.0.0.1", server_port=c.port, share=False, quiet=True,
                theme=theme, css=STYLE, footer_links=[], run_history=False, ssr_mode=False,
                mcp_server=False, enable_monitoring=False, prevent_thread_lock=True,
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"--port {c.port}: in use, or not allowed; name another") from error
        print(f"http://127.0.0.1:{c.port} (Ctrl-C ends it)", flush=True)
        built.block_thread()


class Networks:
    """What transfer_noise.py and denoise.py do, on one photo."""

    def __init__(self, c: Config) -> None:
        from denoise import find_weights
        from evaluation.references import embed_photo
        from models.denoisers import denoiser_from_checkpoint
        from models.noise_transfer import NoiseTransfer
        from models.tiles import Tiler
        from utils.folder_jobs import read_in_memory
        from utils.memory import keep_pages

        keep_pages()
        device = choose_device(c.gpu)
        self.transferring = NoiseTransfer.from_checkpoint(beside(c.nt), device)
        self.denoiser = denoiser_from_checkpoint(find_weights(beside(c.denoiser)), device)
        self.tiler = Tiler(self.transferring.generator, device)
        self.denoising_tiler = Tiler(self.denoiser, device)
        self.embed = lru_cache(8)(lambda p: embed_photo(self.transferring, p, read_in_memory(p)[0]))

    def transfer(self, reference: Path, clean: Path, strength: float, told: Progress) -> "Result":
        from evaluation.photo_section import Result, white_noise
        from models.generator import placed_noise
        from utils.folder_jobs import read_in_memory

        told(0, desc="Looking at the reference's noise")
        noisy_photo, _ = read_in_memory(reference)
        z = self.embed(reference)
        pixels, tags = read_in_memory(clean)

        def generate(x: Any, top: int, left: int) -> Any:
            return self.transferring.generate(x, z, placed_noise([SEED], top, left), strength)

        by_tile = tile_progress(told, pixels, "Transferring the noise")
        noisy = self.tiler(pixels, generate, progress=by_tile)
        return Result(clean.stem, tags, noisy_photo, pixels, noisy, white_noise(pixels, noisy))

    def denoise(self, result: "Result", told: Progress) -> "Result":
        noisy, by_tile = result.noisy, tile_progress(told, result.noisy, "Denoising")
        denoised = self.denoising_tiler(noisy, lambda x, *_: self.denoiser(x), progress=by_tile)
        return replace(result, denoised=denoised)


def tile_progress(told: Progress, image: "np.ndarray", name: str) -> Callable[[int], None]:
    done, (height, width, _) = 0, image.shape

    def by_tile(pixels: int) -> None:
        nonlocal done
        done += pixels
        told(done / (height * width), desc=name)

    by_tile(0)
    return by_tile


@contextmanager
def errors_shown() -> Iterator[None]:
    """On the page, without the folder of an upload; what is a bug keeps its traceback, too."""
    import gradio as gr

    from utils.memory import is_out_of_memory

    try:
        yield
    except Exception as error:
        text = "Out of memory; close other programs or crop the photo"
        if isinstance(error, UserError):
            folder = str(Path(str(error).partition(": ")[0]).parent) + os.sep
            text = str(error).removeprefix(folder)
        elif not is_out_of_memory(error):
            raise
        raise gr.Error(escape(text), print_exception=False) from error


def page(networks: Networks, folder: Path) -> "gr.Blocks":
    """folder: for the files that it hands out."""
    import gradio as gr

    from data.sample import write_examples
    from evaluation.photo_section import Result, crops_html, curves_html, preview
    from transfer_noise import LARGEST_STRENGTH
    from utils.folder_jobs import read_in_memory
    from utils.photos import write_photo

    shown_progress = gr.Progress()

    def path_of(photo: dict | None, kind: str) -> Path:
        require(photo is not None, f"There is no {kind} yet: drop one, or take an example")
        return Path(photo["path"])

    def check(photo: dict) -> Any:
        """At once, not when it is used; a TIFF becomes what browsers show, with all its bits."""
        with errors_shown():
            path = path_of(photo, "photo")
            pixels, tags = read_in_memory(path)
            if path.suffix.lower() in (".tif", ".tiff"):
                path = path.with_suffix(".png")
                write_photo(path, pixels, tags)
            return str(path)

    def crops_of(result: Result | None, x: float, y: float) -> Any:
        return gr.skip() if result is None else crops_html(result, x / 100, y / 100)

    def file_of(result: Result, own: str) -> str:
        what = "noisy" if result.denoised is None else "denoised"
        path = Path(own, f"{result.name}_{what}.png")
        write_photo(path, getattr(result, what), result.tags)
        return str(path)

    def transfer(reference, clean, strength, x, y, own, progress=shown_progress) -> dict:
        with errors_shown():
            paths = path_of(reference, "noisy reference"), path_of(clean, "clean photo")
            result = networks.transfer(*paths, strength, progress)
            progress(1, desc="Drawing")
            return {
                state: result,
                status: f"Done: noise of strength {strength:g}.",
                results: gr.Column(visible=True),
                noisy_view: preview(result.noisy),
                white_view: preview(result.white),
                denoised_view: gr.Image(None, visible=False),
                crops: crops_of(result, x, y),
                curves: curves_html(result),
                noisy_file: file_of(result, own),
                denoised_file: gr.DownloadButton(visible=False),
            }

    def again(result, reference, clean, *settings, progress=shown_progress) -> Any:
        if result is None or not reference or not clean:
            return gr.skip()
        if result.clean.size > AT_ONCE:
            return {status: "Transfer noise again for this strength."}
        return transfer(reference, clean, *settings, progress)

    def denoise(result, x, y, own, progress=shown_progress) -> dict:
        with errors_shown():
            require(result is not None, "There is nothing to denoise yet: transfer noise first")
            result = networks.denoise(result, progress)
            return {
                state: result,
                status: "Done: denoised.",
                denoised_view: gr.Image(preview(result.denoised), visible=True),
                crops: crops_of(result, x, y),
                denoised_file: gr.DownloadButton(value=file_of(result, own), visible=True),
            }

    def aim(result: Result, at: gr.SelectData) -> tuple[float, float]:
        height, width = preview(result.noisy).shape[:2]
        return round(100 * at.index[0] / width), round(100 * at.index[1] / height)

    raw = {"preprocess": False, "api_visibility": "private"}  # files as they were uploaded
    one = raw | {"concurrency_id": "networks", "concurrency_limit": 1}
    photo = {"type": "filepath", "sources": ["upload", "clipboard"], "height": 280}

    def image(label: str, **options: Any) -> gr.Image:
        options |= {"format": "png", "interactive": False, "buttons": ["fullscreen"]}
        return gr.Image(label=label, alt_text=label, elem_classes="view", **options)

    with gr.Blocks(
        title="NoiseTransfer", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)
    ) as built:
        state, own = gr.State(), gr.State(lambda: tempfile.mkdtemp(dir=folder))
        gr.Markdown("# NoiseTransfer\nOne photo's noise on another. Nothing leaves this computer.")
        with gr.Row():
            reference = gr.Image(label="Noisy reference", elem_id="reference", **photo)
            clean = gr.Image(label="Clean photo", elem_id="clean", **photo)
            with gr.Column(min_width=320):
                names, *pairs = zip(*write_examples(folder), strict=True)
                examples = gr.Examples(
                    [*map(list, zip(*pairs, strict=True))], [reference, clean],
                    example_labels=list(names), label="Examples: simulated noise of a",
                )  # fmt: skip
                strength = gr.Slider(0, LARGEST_STRENGTH, 1, step=0.05, label="Noise strength")
                with gr.Row():
                    go = gr.Button("Transfer noise", variant="primary")
                    clear_up = gr.Button("Denoise")
                status = gr.Markdown(elem_id="status")
        with gr.Column(visible=False) as results:
            with gr.Row():
                noisy_view = image("NoiseTransfer")
                white_view = image("White noise of the same strength")
                denoised_view = image("Denoised", visible=False)
            with gr.Row():
                noisy_file = gr.DownloadButton("Download the noisy (PNG)")
                denoised_file = gr.DownloadButton("Download the denoised (PNG)", visible=False)
            gr.Markdown("## Pixel for pixel\nClick a photo above, or move:")
            with gr.Row():
                x = gr.Slider(0, 100, 50, step=1, label="Across [%]")
                y = gr.Slider(0, 100, 50, step=1, label="Down [%]")
            crops = gr.HTML()
            gr.Markdown("## Noise")
            curves = gr.HTML()

        shown = [state, status, results, noisy_view, white_view, denoised_view, crops, curves,
                 noisy_file, denoised_file]  # fmt: skip
        settings = [reference, clean, strength, x, y, own]
        one |= {"show_progress_on": status}
        for given in (reference, clean):
            given.upload(check, given, given, **raw).failure(lambda: None, None, given)
        go.click(transfer, settings, shown, **one)
        examples.load_input_event.then(transfer, settings, shown, **one)
        strength.change(again, [state, *settings], shown, trigger_mode="always_last", **one)
        clear_up.click(denoise, [state, x, y, own], shown, **one)
        moved = {"trigger_mode": "always_last", "show_progress": "hidden", **raw}
        gr.on([x.change, y.change], crops_of, [state, x, y], crops, **moved)
        for made in (noisy_view, white_view, denoised_view):
            made.select(aim, state, [x, y], **raw)
    return built


if __name__ == "__main__":
    exit_on_user_error(main)
