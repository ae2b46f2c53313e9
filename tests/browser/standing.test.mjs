// A standing cohort from the console: terms, seats, coins, numbers and announcements.

import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';

import { accessibility } from './support/browser.mjs';
import { Node } from './support/node.mjs';
import { Program, run } from './support/program.mjs';
import { testOnNode } from './support/suite.mjs';
import { World, leave, mark, shows, titled } from './support/world.mjs';

/** The program of a seat with one DID. */
function seat(world, name) {
    const place = join(world.home, name);
    for (const part of ['dids', 'updates', 'out']) mkdirSync(join(place, part), { recursive: true });
    const identity = (...path) => {
        const file = join(place, ...path);
        run('identity', 'new', '--network', 'regtest', '--out', file);
        return file;
    };
    identity('dids', 'own.id');
    return new Program([
        'join', '--standing', '--service', world.url, '--identity', identity('seat.id'), '--events', 'json', '--dids', join(place, 'dids'),
        '--updates', join(place, 'updates'), '--out', join(place, 'out'), '--state', join(place, 'state'), ...world.chain,
    ]);
}

testOnNode('a standing cohort is formed funded held and announces', async () => {
    const node = await Node.start();
    const world = await World.start({ node });
    const page = await world.operator('operator');
    page.expects(/status of 409/);
    await page.open('/templates');
    await page.getByRole('link', { name: 'New for a standing cohort' }).click();
    await titled(page, 'New terms of a standing cohort');
    await page.getByLabel('Name', { exact: true }).fill('board');
    await page.getByLabel('Fewest seats').fill('2');
    await page.getByLabel('Most seats').fill('5');
    await page.getByLabel('When a seat does not answer').selectOption('wait');
    await page.getByLabel('Shortest time between announcements').fill('1s');
    await page.getByRole('button', { name: 'Preview' }).click();
    await page.locator('#preview').getByText('2 to 5 seats').waitFor();
    await page.getByRole('button', { name: 'Save' }).click();
    await titled(page, 'board');
    await page.getByRole('button', { name: 'Advertise a cohort' }).click();
    await page.getByRole('heading', { name: /^Standing cohort/, level: 1 }).waitFor();
    const cohort = page.url().split('/').pop();
    await mark(page);

    const seats = [seat(world, 'one'), seat(world, 'two')];
    await page.locator('#seats [data-row]').nth(1).waitFor();
    await page.stays();
    await page.getByRole('button', { name: 'Form it now' }).click();
    await shows(page, 'The cohort forms of the seats that were admitted.');
    await page.locator('#deposit').getByText('needs a coin').waitFor();
    await mark(page);
    const address = (await page.locator('#deposit code').first().textContent()).trim();
    assert.equal(address, (await world.service.event('standing-formed')).beaconAddress);
    await page.locator('#deposit').getByRole('img', { name: /QR/ }).waitFor();
    for (const satoshis of [80_000, 30_000]) await node.pay(address, satoshis);
    await node.mine(3);
    await page.locator('#tiles').getByText('110,000 sat').waitFor();
    await page.stays();
    assert.deepEqual(await accessibility(page), []);

    // Held, it opens no number.
    await page.getByRole('button', { name: 'Hold' }).click();
    await page.locator('#state').getByText('held', { exact: true }).waitFor();
    await page.open('/');
    await page.locator('#attention').getByText('is held').waitFor();
    await page.open(`/standing/${cohort}`);
    const trigger = async (kind) => {
        await page.getByText('Open a number now', { exact: true }).click();
        await page.getByLabel('What for').selectOption(kind);
        await page.getByRole('button', { name: 'Open it' }).click();
    };
    await trigger('refresh');
    await page.getByRole('alert').getByText('release it first').waitFor();
    await page.getByRole('button', { name: 'Release' }).click();
    await shows(page, 'Numbers are opened again.');
    // It joins the two coins in one, which is announced.
    await trigger('refresh');
    await shows(page, 'A number is open.');
    await mark(page);
    await page.locator('#announced [data-row="1"]').getByText('waits for a block').waitFor();
    await node.mine(3);
    await page.locator('#announced [data-row="1"]').getByText('final', { exact: true }).waitFor();
    await page.locator('#tiles').getByText('1 coin').waitFor();
    await page.stays();
    assert.equal(await page.getByText('Cancel', { exact: true }).count(), 0, 'its address is that of DIDs');
    await page.open('/coins');
    await page.locator(`#standing [data-row="${cohort}"]`).waitFor();
    assert.deepEqual(await accessibility(page), []);
    for (const program of seats) await program.stop();
    await leave(page);
});
