/** Files of the user's machine: what was picked or dropped, folders opened up. */

/** How loose slices are called: their own names say nothing. */
const LOOSE = "dicom_slices";

/**
 * What a file or folder picker holds.
 * @param {FileList} list
 * @returns {{name: string, files: File[], folder: boolean}}
 */
export function picked(list) {
  const files = [...list].filter(isShown);
  const folder = list[0]?.webkitRelativePath.split("/")[0];
  return { name: folder || nameOf(files), files, folder: Boolean(folder) };
}

/**
 * What was dropped on the page.
 * @param {DataTransfer} transfer
 * @param {number} most files; reading goes on to one more, so that the caller sees there are too many
 * @returns {Promise<{name: string, files: File[], folder: boolean}>}
 */
export async function dropped(transfer, most) {
  // All entries are taken before the first wait, after which the transfer is empty.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  const files = [];
  for (const entry of entries) await gather(entry, files, most);
  const folder = entries.length === 1 && entries[0].isDirectory;
  return { name: folder ? entries[0].name : nameOf(files), files, folder };
}

/** Whether a file begins as DICOM files do, whatever it is called. */
export async function isDicom(file) {
  return (await file.slice(128, 132).text()) === "DICM";
}

async function gather(entry, files, most) {
  if (files.length > most) return;
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    if (isShown(file)) files.push(file);
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return; // they come a hundred at a time
    for (const inner of some) await gather(inner, files, most);
  }
}

/** Systems leave hidden files of their own in folders. */
function isShown(file) {
  return !file.name.startsWith(".");
}

function nameOf(files) {
  return files.length === 1 ? files[0].name : LOOSE;
}
