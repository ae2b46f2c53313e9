// Without this script the page is complete: it adds buttons that copy, and puts the invite of the address into the commands. The invite is
// behind the # of the address, which browsers do not send to the service.
"use strict";
(() => {
  const hash = new URLSearchParams(location.hash.slice(1));
  const invite = hash.get("invite");
  // What a token can have: nothing that a shell or TOML would read in another way.
  if (invite && /^[A-Za-z0-9_-]{1,200}$/.test(invite)) {
    for (const code of document.querySelectorAll("code[data-join]")) {
      const text = code.textContent;
      code.textContent = text.includes("--invite TOKEN") ? text.replace("TOKEN", invite) : `${text} --invite ${invite}`;
    }
    for (const code of document.querySelectorAll("code[data-config]")) {
      const text = code.textContent;
      code.textContent = text.includes('invite = "TOKEN"') ? text.replace("TOKEN", invite) : `${text}invite = "${invite}"\n`;
    }
    const shown = document.getElementById("invite");
    shown.textContent = "You have an invite. It is in the commands below, and was not sent to the service.";
    shown.hidden = false;
    // Not in the history of the browser, nor in a screenshot of the address.
    history.replaceState(null, "", location.pathname + location.search);
  }
  for (const code of document.querySelectorAll("code[data-copy]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        // Without the right to write to the clipboard: it is selected, so that it can be copied.
        const range = document.createRange();
        range.selectNodeContents(code);
        const selection = getSelection();
        selection.removeAllRanges();
        selection.addRange(range);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    code.parentElement.after(button);
  }
})();
