// Without this script every page is complete: it logs in with the secret of the address, and refreshes what is marked as live.
"use strict";
(() => {
  const login = document.getElementById("login");
  if (login) {
    const secret = new URLSearchParams(location.hash.slice(1)).get("secret");
    if (secret) {
      // Not in the history of the browser.
      history.replaceState(null, "", location.pathname);
      document.getElementById("secret").value = secret;
      login.submit();
    }
    return;
  }
  const live = [...document.querySelectorAll("[data-live][id]")];
  if (live.length === 0) return;
  const refresh = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(location.href, { headers: { "X-Background": "1" } });
      // The session has ended: the page stays as it is until it is loaded again.
      if (answer.status !== 200) return;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const region of live) {
        const now = page.getElementById(region.id);
        const isOpen = region.querySelector("details[open]") || region.contains(document.activeElement);
        if (now && !isOpen && now.innerHTML !== region.innerHTML) region.innerHTML = now.innerHTML;
      }
    } catch {
      // The agent is gone: it is tried again.
    }
  };
  setInterval(refresh, 5000);
})();
