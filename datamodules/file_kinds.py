"""What a file is, told from its first bytes, and the line that makes of it what this project reads."""

import re
from pathlib import Path

START = 560  # bytes that tell every kind below


def stack_line(module: str, read: str, pattern: str) -> str:
    """The command that stacks the images of many files into one `.npy` file; `read` reads the file `f`."""
    files = f"sorted(glob.glob('{pattern}'))"
    return (
        "save them as one array, for dataset=npy: "
        f"python -c \"import glob, {module}, numpy; numpy.save('images.npy', numpy.stack([{read} for f in {files}]))\""
    )


def array_line(module: str, read: str) -> str:
    """The command that saves the array that `read` gives as an `.npy` file."""
    code = f"import numpy, {module}; numpy.save('images.npy', {read})"
    return f'save its array, for dataset=npy: python -c "{code}"'


def png_line(suffix: str) -> str:
    """The command that converts all pictures of a suffix in a folder."""
    return f"convert them with ImageMagick: magick mogrify -format png '*{suffix}'"


FOLDER = "set dataset=folder and dataset.path to the folder that holds it"
NIFTI = array_line("nibabel", "nibabel.load('FILE').get_fdata().transpose(2, 1, 0)[:, ::-1]")  # axial slices
GUNZIP = "run: gunzip"
TIFF = stack_line("tifffile", "tifffile.imread(f)", "*.tif")
ARRAYS = stack_line("os", "numpy.load(f)", "*.npy")
HDF5 = "set dataset=hdf5 and dataset.path to it"
MATLAB_73 = array_line("h5py", "h5py.File('FILE')['KEY'][:].T")  # its axes are reversed
MATLAB = array_line("scipy.io", "scipy.io.loadmat('FILE')['KEY']")
NETCDF = array_line("xarray", "xarray.open_dataset('FILE')['KEY'].values")
FLOATING = array_line("cv2", "cv2.imread('FILE', -1)[None]")
DRAWING = "not pixels; export it as PNG"
UNPACK = "unpack it and set dataset=folder"

TEXT = rb"(\xef\xbb\xbf)?\s*"  # how one may begin

# What files begin with that are no images and no arrays, and what they are.
KINDS = (
    (rb"\Z", "an empty file of 0 bytes"),
    (rb"\0+\Z", "nothing but zero bytes, as a broken copy or download leaves"),
    (TEXT + rb"(<\?xml[^>]*>\s*)?(<!doctype html|<html|<head)", "a web page (HTML), as a failed download leaves"),
    (TEXT + rb"<\?xml[^>]*>\s*<error", "a server's error (XML), as a failed download leaves"),
    (TEXT + rb"\{\s*\"", "a JSON text, such as the error of a server"),
    (TEXT + rb"(<svg|<\?xml)", f"an SVG or XML text, {DRAWING}"),
    (rb"version https://git-lfs", "a Git LFS pointer in place of the file; run: git lfs pull"),
    (rb".{4}ftyp(heic|heix|hevc|mif1|msf1)", f"a HEIC picture; {FOLDER}"),
    (rb"%!PS|\xc5\xd0\xd3\xc6|%PDF", f"PostScript or PDF, {DRAWING}"),
    (rb".{128}DICM", f"a DICOM file; {FOLDER}"),
    (rb"[\2\x08]\0.\0(UL|CS|UI|DA)", "a DICOM file without its first 132 bytes; add them: dcmconv FILE.dcm NEW.dcm"),
    (rb"SIMPLE  =", f"a FITS file; {FOLDER}"),
    (rb".{344}(n\+1|ni1)\0", f"a NIfTI volume; {NIFTI}"),
    (rb"\x89HDF\r\n\x1a\n", f"an HDF5 file; {HDF5}"),
    (rb"MATLAB 7\.3", f"a MATLAB 7.3 file; {MATLAB_73}"),
    (rb"MATLAB 5\.0", f"a MATLAB file; {MATLAB}"),
    (rb"CDF[\x01\x02\x05]", f"a NetCDF file; {NETCDF}"),
    (rb"PAR1", "a Parquet file; set dataset=hf, and dataset.path to it or to the folder that holds it"),
    (rb"ARROW1", "an Arrow file; set dataset=hf and dataset.path to the folder that holds it"),
    (rb"\x93NUMPY", "an array of NumPy; call it .npy and set dataset=npy"),
    (rb"PK\x03\x04.{26}[^\0]{0,200}?/?data\.pkl", "a file of PyTorch; save its tensor with numpy.save"),
    (rb"PK(\x03\x04|\x05\x06)", "a ZIP archive; set dataset=zip for images in it, or dataset=npy for an .npz"),
    (rb"Rar!", f"a RAR archive; {UNPACK}"),
    (rb"7z\xbc\xaf\x27\x1c", f"a 7-Zip archive; {UNPACK}"),
    (rb".{257}ustar", f"a tar archive; for a shard of WebDataset set dataset=hf; else {UNPACK}"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd", "a compressed file (gzip, bzip2, xz, zstd); unpack it first"),
    (rb"\x80[\x02-\x05]", "a pickle, which may run code and is not opened; save its array with numpy.save"),
    (rb".{7}\0\{\"", "a safetensors file; save one of its tensors with numpy.save"),
    (rb"8BPS", f"a Photoshop file; {png_line('.psd')}"),
    (rb"\0\0\x01\0|icns", f"an icon; {png_line('.ico')}"),
    (rb"\x01\xda[\0\x01][\x01\x02]", f"an SGI picture; {png_line('.sgi')}"),
    (rb"DDS ", f"a DDS texture; {png_line('.dds')}"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", f"a JPEG XL picture; {FOLDER}"),
    (rb"P[fF]\s|PF4\s", f"a PFM picture of floating-point values; {FLOATING}"),
    (rb"v/1\x01", f"an OpenEXR picture of floating-point values; {FLOATING}"),
)  # fmt: skip


def start_of(path: Path) -> bytes:
    """The first bytes of a file, as many as `kind_of` needs."""
    with path.open("rb") as file:
        return file.read(START)


def kind_of(start: bytes) -> str | None:
    """What a file is that begins so, and what to do about it; None where these bytes do not tell."""
    return next((words for pattern, words in KINDS if re.match(pattern, start, re.I | re.S)), None)
