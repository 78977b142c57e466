/** Files that the user picked or dropped, with the contents of folders. */

/** Name for a set of loose slices, whose file names carry no meaning. */
const LOOSE = "dicom_slices";

/**
 * Files chosen in a file or folder picker.
 * @param {FileList} list
 * @returns {{name: string, files: File[], folder: boolean}}
 */
export function picked(list) {
  const files = [...list].filter(isShown);
  const folder = list[0]?.webkitRelativePath.split("/")[0];
  return { name: folder || nameOf(files), files, folder: Boolean(folder) };
}

/**
 * Files dropped on the page.
 * @param {DataTransfer} transfer
 * @param {number} limit number of files; one more is read, so that the caller can detect an excess
 * @returns {Promise<{name: string, files: File[], folder: boolean}>}
 */
export async function dropped(transfer, limit) {
  // Collect all entries before the first `await`, after which the transfer is empty.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  const files = [];
  for (const entry of entries) await gather(entry, files, limit);
  const folder = entries.length === 1 && entries[0].isDirectory;
  return { name: folder ? entries[0].name : nameOf(files), files, folder };
}

/** Whether a file starts with the DICOM preamble, regardless of its name. */
export async function isDicom(file) {
  return (await file.slice(128, 132).text()) === "DICM";
}

async function gather(entry, files, limit) {
  if (files.length > limit) return;
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    if (isShown(file)) files.push(file);
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!batch.length) return; // the browser returns entries in batches of a hundred
    for (const child of batch) await gather(child, files, limit);
  }
}

/** Whether a file is not hidden: operating systems leave hidden files in folders. */
function isShown(file) {
  return !file.name.startsWith(".");
}

function nameOf(files) {
  return files.length === 1 ? files[0].name : LOOSE;
}
