// The console works without this. It adds times of this place, buttons to copy, and pages that follow what happens.
'use strict';

(() => {
    const find = (selector, within = document) => [...within.querySelectorAll(selector)];

    // Times: the server writes UTC.

    const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
    const whole = new Intl.DateTimeFormat(undefined, {
        year: 'numeric', month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit', second: '2-digit',
    });
    const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit' });
    // The clock of this machine may differ from the server's.
    const skew = Number(document.body.dataset.now || Date.now()) - Date.now();

    const units = [[86400, 'd'], [3600, 'h'], [60, 'm'], [1, 's']];
    function span(seconds) {
        let rest = Math.max(0, Math.floor(seconds));
        const parts = [];
        for (const [size, unit] of units) {
            const count = Math.floor(rest / size);
            rest %= size;
            if (count) parts.push(count + unit);
            else if (parts.length) break;
            if (parts.length === 2) break;
        }
        return parts.join(' ') || '0s';
    }

    function set(element, text) {
        if (element.textContent !== text) element.textContent = text;
    }

    function localize(time) {
        const at = new Date(time.dateTime);
        if (Number.isNaN(at.getTime())) return;
        if (!time.classList.contains('ago')) {
            set(time, (time.classList.contains('clock') ? clock : whole).format(at));
            time.title = time.dateTime.replace('T', ' ').replace('Z', ' UTC');
            return;
        }
        const distance = (at - Date.now() - skew) / 1000;
        set(time, distance > 0 ? `in ${span(distance)}` : `${span(-distance)} ago`);
        time.title = whole.format(at);
    }

    function times(within = document) {
        find('time[datetime]', within).forEach(localize);
    }

    // Copying.

    function copying(within = document) {
        if (!navigator.clipboard) return;
        for (const button of find('button[data-copy][hidden]', within)) button.hidden = false;
    }

    document.addEventListener('click', async (event) => {
        const button = event.target.closest('button[data-copy]');
        if (!button) return;
        const name = button.firstElementChild ?? button;
        const before = name.dataset.before ?? name.textContent;
        name.dataset.before = before;
        try {
            await navigator.clipboard.writeText(button.dataset.copy);
            name.textContent = 'Copied';
        } catch {
            name.textContent = 'Select it';
            getSelection().selectAllChildren(button.previousElementSibling);
        }
        setTimeout(() => (name.textContent = before), 2000);
    });

    // A form is sent once, whatever the double click.

    document.addEventListener('submit', (event) => {
        const form = event.target;
        if (form.dataset.sent) event.preventDefault();
        form.dataset.sent = 'yes';
    });
    addEventListener('pageshow', () => find('form[data-sent]').forEach((form) => delete form.dataset.sent));

    // Only one question is open at a time, and Escape closes it.

    document.addEventListener('toggle', (event) => {
        const opened = event.target;
        if (!opened.matches('details.ask') || !opened.open) return;
        find('details.ask[open]').filter((other) => other !== opened).forEach((other) => (other.open = false));
    }, true);
    document.addEventListener('keydown', (event) => {
        if (event.key !== 'Escape') return;
        for (const open of find('details.ask[open]')) {
            const inside = open.contains(document.activeElement);
            open.open = false;
            if (inside) open.firstElementChild.focus();
        }
    });
    document.addEventListener('click', (event) => {
        find('details.ask[open]').filter((open) => !open.contains(event.target)).forEach((open) => (open.open = false));
    });

    // Live: at an event the page is fetched again, and its parts that have changed take the place of the old ones.

    const shown = document.querySelector('[data-live-state]');
    const stream = document.body.dataset.events;
    // The page that a form has answered with is at another address than the page that it shows.
    const address = document.body.dataset.url;
    const answered = address !== location.pathname + location.search;

    function state(name, text) {
        if (!shown) return;
        shown.hidden = false;
        shown.dataset.state = name;
        set(shown, text);
    }

    /** Whether the user is doing something in there that must not be disturbed. */
    function busy(part) {
        const active = document.activeElement;
        const typing = part.contains(active) && active.matches('input, select, textarea');
        const selection = getSelection();
        const selecting = !selection.isCollapsed && part.contains(selection.anchorNode);
        const typed = answered && Boolean(part.querySelector('form :is(input:not([type="hidden"]), select, textarea)'));
        return typing || selecting || typed || Boolean(part.querySelector('details.ask[open]'));
    }

    /** What identifies an element over updates. */
    const key = (element) => element.id || element.getAttribute('href') || element.textContent;

    function replace(old, fresh) {
        const opened = new Set(find('details[open]', old).map((one) => key(one.querySelector('summary'))));
        const active = old.contains(document.activeElement) ? document.activeElement : null;
        const rows = new Map(find('[data-row]', old).map((row) => [row.dataset.row, row.textContent.replace(/\d+[smhd]/g, '')]));
        for (const one of find('details', fresh)) if (opened.has(key(one.querySelector('summary')))) one.open = true;
        times(fresh);
        copying(fresh);
        for (const row of find('[data-row]', fresh)) {
            if (rows.get(row.dataset.row) !== row.textContent.replace(/\d+[smhd]/g, '')) row.classList.add('fresh');
        }
        old.replaceWith(fresh);
        if (active) find(active.tagName, fresh).find((one) => key(one) === key(active))?.focus();
    }

    /** The HTML of a part as the server wrote it, without how long ago something was: that changes by itself. */
    const html = (part) => part.outerHTML.replace(/(<time class="ago"[^>]*>)[^<]*/g, '$1');
    const written = new Map(find('[data-live][id]').map((part) => [part.id, html(part)]));
    let waiting = new Set();

    async function refresh() {
        // In the background: it is no use of the session, and does not take the message of a form.
        const answer = await fetch(address, { headers: { 'X-Background': '1' }, cache: 'no-store', redirect: 'manual' });
        if (answer.type === 'opaqueredirect' || answer.status === 401) return ended();
        // What is shown may be gone now: that is a page too.
        const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
        waiting = new Set();
        for (const old of find('[data-live][id]')) {
            const fresh = page.getElementById(old.id);
            if (!fresh || written.get(old.id) === html(fresh)) continue;
            if (busy(old)) {
                waiting.add(old.id);
                continue;
            }
            written.set(old.id, html(fresh));
            replace(old, document.importNode(fresh, true));
        }
        return undefined;
    }

    let source;
    let timer;
    let running = false;
    let again = false;

    function ended() {
        source?.close();
        clearTimeout(timer);
        state('lost', 'Your session has ended');
        // It leads to the login, and back.
        location.replace(address);
    }

    async function soon() {
        if (running) {
            again = true;
            return;
        }
        running = true;
        try {
            do {
                again = false;
                await refresh();
                // Many events come at once: the page follows a few times a second at most.
                await new Promise((done) => setTimeout(done, 250));
            } while (again);
        } catch {
            state('lost', 'Connection lost');
        } finally {
            running = false;
        }
    }

    function live() {
        source = new EventSource(stream);
        source.onopen = () => {
            state('live', 'Live');
            // What happened while it was not connected, also between the page and this.
            soon();
        };
        source.onmessage = () => {
            clearTimeout(timer);
            timer = setTimeout(soon, 60);
        };
        source.onerror = () => {
            state('lost', 'Connection lost: trying again');
            // An answer that is not a stream, e.g. that the session has ended, ends an EventSource.
            if (source.readyState === EventSource.CLOSED) setTimeout(() => refresh().then(live, () => setTimeout(live, 3000)), 1000);
        };
    }

    document.addEventListener('focusout', () => waiting.size && setTimeout(soon, 300));
    document.addEventListener('toggle', () => waiting.size && setTimeout(soon, 300), true);

    times();
    copying();
    setInterval(() => times(), 1000);
    for (const name of find('[data-zone]')) set(name, zone);
    if (stream && address && find('[data-live][id]').length) live();
})();
