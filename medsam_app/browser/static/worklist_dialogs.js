/** Dialogs of the worklist: the user's name, conflicting changes, and empty cases. */

import { dialog } from "./dialogs.js";
import { h } from "./dom.js";

/** Ask a question with one button per choice. @returns {Promise<string|null>} value of the button; null if the dialog was closed */
function choose(parent, title, sentence, choices) {
  return new Promise((resolve) => {
    let chosen = null;
    const buttons = choices.map(([value, text], n) =>
      h(n ? "button.small" : "button.primary", { type: "button", "data-id": `choose-${value}`, text, onclick: () => ((chosen = value), element.close()) }),
    );
    const element = dialog(title, h("p", { text: sentence }), h("div.choices", {}, ...buttons));
    element.addEventListener("close", () => resolve(chosen));
    parent.append(element);
    element.showModal();
  });
}

/** Ask which version of a conflicting case to keep. @returns {Promise<"mine"|"theirs"|null>} */
export function askConflict(parent, sentence) {
  return choose(parent, "Somebody else changed this case", sentence, [["theirs", "Take theirs"], ["mine", "Keep mine as a newer version"]]);
}

/** Ask whether to accept a case without any mask. @returns {Promise<boolean>} */
export async function askEmpty(parent, name) {
  const sentence = `Nothing is segmented in ${name}. Is that right?`;
  return (await choose(parent, "Accept an empty case?", sentence, [["empty", "Accept as empty"]])) === "empty";
}

/** Ask for the name that the user's work is signed with; it may be empty. @returns {Promise<string>} */
export function askName(parent) {
  return new Promise((resolve) => {
    const field = h("input.editable", { type: "text", maxLength: 60, "aria-label": "Your name", "data-id": "who", autocomplete: "name" });
    const form = h(
      "form.who",
      { onsubmit: (event) => (event.preventDefault(), element.close()) },
      h("p", { text: "Others see who worked on a case. The name is kept in this browser and sent with your work." }),
      field,
      h("div.choices", {}, h("button.primary", { type: "submit", "data-id": "who-done", text: "Go on" })),
    );
    const element = dialog("What is your name?", form);
    element.addEventListener("close", () => resolve(field.value.trim()));
    parent.append(element);
    element.showModal();
    field.focus();
  });
}
