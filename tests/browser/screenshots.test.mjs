// The images of docs/, made when SCREENSHOTS is set: not in CI, where the tree does not change.

import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';

import { close, withoutBrowser } from './support/browser.mjs';
import { Node, withoutNode } from './support/node.mjs';
import { endAll, ROOT } from './support/program.mjs';
import { World, titled } from './support/world.mjs';

after(async () => {
    endAll();
    await close();
});

const skip = process.env.SCREENSHOTS ? withoutBrowser || withoutNode : 'SCREENSHOTS is not set';

test('the images of the documents are made', { skip }, async () => {
    const images = join(ROOT, 'docs/images');
    mkdirSync(images, { recursive: true });
    const shoot = (page, name) => page.screenshot({ path: join(images, `console-${name}.png`), animations: 'disabled' });

    const node = await Node.start(8);
    const world = await World.start({ node });
    const put = (name, ...terms) => world.ctl('template', 'put', name, ...terms.flatMap((term) => ['--set', term]));
    put('weekly', 'min-participants=3', 'max-participants=3', 'beacon=smt', 'phase-timeout=2h');
    put('archive', 'min-participants=2', 'max-participants=2', 'phase-timeout=1day');
    put('monthly', 'min-participants=5', 'max-participants=9', 'advert-repeat=1s');
    const cohort = (template) => world.ctl('cohort', 'create', '--template', template).cohortId;

    // One that is confirming, one that waits for its deposit, one that is open.
    cohort('archive');
    world.join('ann');
    world.join('ben', '--decline');
    const first = await world.service.event('funding-wanted');
    await node.pay(first.beaconAddress, 60_000);
    await node.mine(1);
    await world.service.event('announcement-broadcast');
    await node.mine(1);
    await world.service.event('announcement-confirmed');
    const waiting = cohort('weekly');
    for (const name of ['carol', 'dave']) world.join(name);
    world.join('erin', '--decline');
    await world.service.event('funding-wanted', (event) => event.cohortId === waiting);
    const open = cohort('monthly');
    for (const name of ['frank', 'grace', 'heidi']) world.join(name);
    const joined = () => world.service.seen.filter((one) => one.event === 'participant-accepted' && one.cohortId === open).length;
    await world.service.event('participant-accepted', () => joined() === 3);
    world.ctl('template', 'advertise', 'monthly');

    const page = await world.operator('operator', { viewport: { width: 1200, height: 800 } });
    await page.locator('#running').getByText('1 of 3 confirmations').or(page.locator('#running').getByText('1 confirmation')).first().waitFor();
    await shoot(page, 'overview');
    await page.open(`/cohorts/${waiting}`);
    await page.getByRole('heading', { name: 'Deposit wanted' }).waitFor();
    await shoot(page, 'cohort');
    await page.open('/templates/new');
    await page.getByLabel('Name', { exact: true }).fill('quarterly');
    await page.getByLabel('Fewest members').fill('8');
    await page.getByLabel('Most members').fill('12');
    await page.getByLabel('How updates are announced').selectOption('smt');
    await page.getByRole('button', { name: 'Preview' }).click();
    await page.locator('#preview').waitFor();
    await shoot(page, 'terms');

    const phone = await world.operator('operator', { viewport: { width: 360, height: 740 }, colorScheme: 'dark', deviceScaleFactor: 1.5 });
    await titled(phone, 'Overview');
    await shoot(phone, 'phone');
});
