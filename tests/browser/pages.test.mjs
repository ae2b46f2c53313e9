// Every page, for everyone: by axe, in the dark, on a phone, with the keyboard alone, and without scripts.

import assert from 'node:assert/strict';

import { accessibility, overflow } from './support/browser.mjs';
import { eventually } from './support/program.mjs';
import { test } from './support/suite.mjs';
import { World, leave, logIn, shows, titled } from './support/world.mjs';

/** A service with something on every page, and the pages. */
async function full() {
    const world = await World.start();
    world.ctl('template', 'put', 'weekly', '--set', 'min-participants=3', '--set', 'beacon=smt');
    world.ctl('template', 'put', 'board', '--set', 'standing=true', '--set', 'min-participants=2', '--set', 'max-participants=5');
    world.ctl('template', 'advertise', 'weekly');
    const { cohortId: standing } = world.ctl('standing', 'create', '--template', 'board');
    const { cohortId: paused } = world.ctl('cohort', 'create', '--set', 'min-participants=2');
    world.ctl('cohort', 'pause', paused);
    const { cohortId: cancelled } = world.ctl('cohort', 'create', '--set', 'min-participants=2');
    world.ctl('cohort', 'cancel', cancelled, '--reason', 'the wrong day');
    await eventually('it has ended', () => world.ctl('cohort', 'ended').ended.length === 1);
    world.ctl('invite', 'new', '--label', 'bob');
    world.ctl('ban', 'add', world.did('mallory'), '--for', '7d', '--reason', 'rude');
    world.ctl('allow', 'add', world.did('bob'));
    world.ctl('settings', 'set', 'manual-admission=true');
    const member = world.join('alice');
    await world.service.event('opt-in-received');
    const { cohortId: open } = world.ctl('cohort', 'list').cohorts.find((one) => one.template === 'weekly');
    const paths = [
        '/', '/cohorts', `/cohorts/${open}`, `/cohorts/${paused}`, `/cohorts/${cancelled}`, '/cohorts/none', '/standing', `/standing/${standing}`,
        '/templates', '/templates/new', '/templates/new?kind=standing', '/templates/weekly', '/templates/weekly/edit', '/templates/board', '/coins',
        '/admissions', '/invites', '/allow-list', '/bans', `/bans/${encodeURIComponent(world.did('mallory'))}`, '/alarms', '/audit',
        '/settings', '/tokens', '/none',
    ];
    return { world, paths, open, member };
}

test('every page is accessible in light and dark', async () => {
    const { world, paths } = await full();
    const backgrounds = new Set();
    for (const colorScheme of ['light', 'dark']) {
        const page = await world.operator('admin', { colorScheme });
        page.expects(/status of 404/);
        // What is in every colour on every page is in these.
        const shown = colorScheme === 'light' ? paths : paths.filter((path) => /^.$|cohorts.|new$|weekly$|admissions|invites|bans.|audit|settings/.test(path));
        for (const path of shown) {
            await page.open(path);
            for (const details of await page.locator('main details:not(.ask)').all()) await details.evaluate((one) => (one.open = true));
            assert.deepEqual(await accessibility(page), [], `${path} (${colorScheme})`);
        }
        backgrounds.add(await page.evaluate(() => getComputedStyle(document.body).backgroundColor));
        await page.getByRole('button', { name: 'Log out' }).click();
        await page.getByRole('button', { name: 'Log in' }).waitFor();
        assert.deepEqual(await accessibility(page), [], `login (${colorScheme})`);
        await leave(page);
    }
    assert.equal(backgrounds.size, 2, 'dark is not light');
});

test('no page is wider than a phone', async () => {
    const { world, paths } = await full();
    const page = await world.operator('admin', { viewport: { width: 360, height: 740 } });
    page.expects(/status of 404/);
    for (const path of paths) {
        await page.open(path);
        assert.equal(await overflow(page), 0, path);
    }
    // Questions open within the window.
    await page.open('/tokens');
    await page.locator('details.ask summary').first().click();
    assert.equal(await overflow(page), 0);
    // The menu is there too.
    await page.open('/');
    await page.getByText('Menu', { exact: true }).click();
    await page.getByRole('navigation', { name: 'Menu', exact: true }).getByRole('link', { name: 'Audit log' }).click();
    await titled(page, 'Audit log');
    assert.deepEqual(await accessibility(page), []);
    await leave(page);
});

test('all of it works without scripts', async () => {
    const world = await World.start();
    const page = await world.visitor({ javaScriptEnabled: false });
    await page.open('/');
    await logIn(page, world.token());
    await titled(page, 'Overview');
    await page.getByRole('link', { name: 'New terms' }).click();
    await page.getByLabel('Name', { exact: true }).fill('weekly');
    await page.getByLabel('Fewest members').fill('2');
    await page.getByRole('button', { name: 'Preview' }).click();
    await page.locator('#preview').getByText('2 members').waitFor();
    await page.getByRole('button', { name: 'Save' }).click();
    await page.getByRole('button', { name: 'Advertise', exact: true }).click();
    const { cohortId } = await world.service.event('cohort-advertised');
    await page.open(`/cohorts/${cohortId}`);
    await shows(page, '0 of 2 members that are needed');
    await shows(page, 'UTC');
    const member = world.join('alice');
    await member.event('opt-in-accepted');
    await page.reload();
    await shows(page, '1 of 2 members that are needed');
    await page.getByText('Cancel', { exact: true }).click();
    await page.getByLabel('Reason').fill('no scripts');
    await page.getByRole('button', { name: 'Cancel the cohort' }).click();
    await shows(page, 'The cohort is cancelled, and its members are notified.');
    assert.match((await member.event('result')).reason, /no scripts/);
    await page.open('/invites');
    await page.getByRole('button', { name: 'Make an invite' }).click();
    await page.getByRole('heading', { name: 'Your new invite' }).waitFor();
    const copy = page.locator('button[data-copy]');
    assert.ok((await copy.count()) > 0);
    assert.equal(await copy.filter({ visible: true }).count(), 0, 'nothing is shown that needs a script');
    await page.getByRole('button', { name: 'Log out' }).click();
    await page.getByRole('button', { name: 'Log in' }).waitFor();
    await leave(page);
});

/** Presses Tab until something of this name has the focus; asserts that it is seen. */
async function tabTo(page, name) {
    const seen = [];
    for (let presses = 0; presses < 90; presses++) {
        await page.keyboard.press('Tab');
        const [text, outline] = await page.evaluate(() => {
            const one = document.activeElement;
            const label = one.labels?.[0]?.textContent ?? one.getAttribute('aria-label') ?? one.textContent;
            return [label.trim().slice(0, 80), getComputedStyle(one).outlineStyle];
        });
        if (text === name || (name instanceof RegExp && name.test(text))) {
            assert.notEqual(outline, 'none', `the focus on ${name} is visible`);
            return;
        }
        seen.push(text);
    }
    assert.fail(`the keyboard does not reach ${name}: ${seen.join(' | ')}`);
}

test('all of it works with the keyboard alone', async () => {
    const world = await World.start();
    const page = await world.visitor();
    await page.open('/');
    // The field has the focus already.
    await page.keyboard.type(world.token());
    await page.keyboard.press('Enter');
    await titled(page, 'Overview');
    // The first stop skips the menu.
    await tabTo(page, 'Skip to the content');
    await page.keyboard.press('Enter');
    await tabTo(page, 'New terms');
    await page.keyboard.press('Enter');
    await titled(page, 'New terms');
    await tabTo(page, 'Name');
    await page.keyboard.type('weekly');
    await tabTo(page, 'Fewest members');
    await page.keyboard.type('2');
    await tabTo(page, 'Save');
    await page.keyboard.press('Enter');
    await titled(page, 'weekly');
    await tabTo(page, 'Advertise');
    await page.keyboard.press('Enter');
    await shows(page, 'The terms are advertised: a cohort is open.');
    await tabTo(page, /^[0-9a-f]{8}$/);
    await page.keyboard.press('Enter');
    await page.getByRole('heading', { name: /^Cohort/, level: 1 }).waitFor();
    const [{ cohortId }] = world.ctl('cohort', 'list').cohorts;
    // A question opens, and closes with Escape, without losing the place.
    await tabTo(page, 'More time');
    await page.keyboard.press('Enter');
    await page.getByLabel('Give this phase more time').waitFor();
    await page.keyboard.press('Tab');
    await page.keyboard.press('Escape');
    await page.getByLabel('Give this phase more time').waitFor({ state: 'hidden' });
    assert.equal(await page.evaluate(() => document.activeElement.textContent), 'More time');
    await tabTo(page, 'Cancel');
    await page.keyboard.press('Enter');
    await tabTo(page, 'Reason');
    await page.keyboard.type('by hand');
    await tabTo(page, 'Cancel the cohort');
    await page.keyboard.press('Enter');
    await shows(page, 'The cohort is cancelled, and its members are notified.');
    assert.ok(!world.ctl('cohort', 'list').cohorts.some((one) => one.cohortId === cohortId));
    await leave(page);
});

test('what one types or reads is not disturbed by what happens', async () => {
    const world = await World.start();
    const { cohortId } = world.ctl('cohort', 'create', '--set', 'min-participants=1', '--set', 'max-participants=3', '--set', 'settle=1h');
    const page = await world.operator();
    await page.open(`/cohorts/${cohortId}`);
    await page.getByText('Cancel', { exact: true }).click();
    await page.getByLabel('Reason').fill('half a sen');
    const member = world.join('alice');
    await member.event('opt-in-accepted');
    await shows(page, '1 of 1 members that are needed');
    assert.equal(await page.getByLabel('Reason').inputValue(), 'half a sen');
    // What has changed beside it is shown when it is closed.
    const form = page.getByRole('button', { name: 'Form it now' });
    assert.ok(await form.isDisabled());
    await page.keyboard.press('Escape');
    await eventually('the button can be used', () => form.isEnabled());
    // A fold stays open, and the focus stays where it is, when its part is replaced.
    await page.open('/audit');
    const first = page.locator('#list summary').last();
    await first.focus();
    await page.keyboard.press('Enter');
    world.ctl('invite', 'new', '--label', 'while it is open');
    await page.locator('#list').getByText('invite.create').waitFor();
    assert.equal(await page.locator('#list details[open]').count(), 1);
    assert.ok(await first.evaluate((one) => one === document.activeElement), 'the focus is where it was');
    await leave(page);
});

test('times are those of the place where one is', async () => {
    const world = await World.start();
    world.ctl('invite', 'new', '--label', 'bob');
    const page = await world.operator('admin', { timezoneId: 'Asia/Tokyo', locale: 'en-GB' });
    await page.open('/audit');
    const time = page.locator('#list time').first();
    const [shown, title, utc] = await time.evaluate((one) => [one.textContent, one.title, one.dateTime]);
    const expected = new Intl.DateTimeFormat('en-GB', {
        year: 'numeric', month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit', second: '2-digit', timeZone: 'Asia/Tokyo',
    }).format(new Date(utc));
    assert.equal(shown, expected);
    assert.match(title, /UTC$/);
    await shows(page, 'Asia/Tokyo', { exact: false });
    await leave(page);
});

test('a copy button copies what is beside it', async () => {
    const world = await World.start();
    const page = await world.operator('admin', { permissions: ['clipboard-read', 'clipboard-write'] });
    await page.open('/invites');
    await page.getByRole('button', { name: 'Make an invite' }).click();
    await page.getByRole('button', { name: 'Copy token' }).click();
    await shows(page, 'Copied');
    const token = (await page.locator('.copy', { has: page.getByRole('button', { name: 'Copy token' }) }).locator('code').textContent()).trim();
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), token);
    await leave(page);
});
