"""What a dashboard is made of: rows of panels, panels of queries; and Grafana's JSON of it."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

from infra.observability.links import panel_id, uid

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
ALL = models.VariableOption(selected=True, text=["All"], value=["$__all"])
RATE = "$__rate_interval"
"""The window that Grafana chooses: at least four scrapes."""
COLUMNS, WIDTH, HEIGHT = 24, 8, 8
"""Of Grafana's grid, and of a panel in it."""


class Panel(NamedTuple):
    name: str
    """Stays when the title changes: links name it."""
    title: str
    unit: str
    """Grafana's name of it: https://github.com/grafana/grafana/blob/main/packages/grafana-data/src/valueFormats/categories.ts"""
    about: str
    """What it shows and what it means, for whoever sees it the first time."""
    queries: Mapping[str, str]
    """Legend, with labels as {{name}} → PromQL."""
    kind: Literal["lines", "stacked", "number"] = "lines"


class Row(NamedTuple):
    title: str
    panels: list[Panel]


class Variable(NamedTuple):
    """A choice of values of a label, any number of them; at first all, which is also whoever lacks the label."""

    name: str
    metric: str
    """Or a selector of it."""
    label: str


class Board(NamedTuple):
    name: str
    title: str
    about: str
    variables: list[Variable]
    rows: list[Row]

    @property
    def panels(self) -> dict[str, Panel]:
        return {panel.name: panel for row in self.rows for panel in row.panels}

    def json(self, links: Mapping[str, Mapping[str, str]]) -> str:
        """The dashboard as Grafana imports it; `links` are those of its panels: panel → title → URL."""
        made = (
            dashboard.Dashboard(self.title)
            .uid(uid(self.name))
            .description(self.about)
            .tags(["blueprint"])
            .readonly()
            .tooltip(models.DashboardCursorSync.CROSSHAIR)
            .time("now-1h", "now")
            .refresh("30s")
            .link(
                dashboard.DashboardLink("Other dashboards")
                .type(models.DashboardLinkType.DASHBOARDS)
                .tags(["blueprint"])
                .include_vars(True)
                .keep_time(True)
            )
            .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        )
        for variable in self.variables:
            made.with_variable(_variable(variable))
        for row in self.rows:
            made.with_row(dashboard.Row(row.title).id(panel_id(row.title)))
            for panel in row.panels:
                made.with_panel(_panel(panel, links.get(panel.name, {})))
        return JSONEncoder(sort_keys=True, indent=1).encode(made.build())


def _variable(variable: Variable) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(variable.name)
        .label(variable.name.replace("_", " "))
        .datasource(DATASOURCE)
        .query(f"label_values({variable.metric}, {variable.label})")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(ALL)
    )


def _panel(panel: Panel, links: Mapping[str, str]) -> timeseries.Panel | stat.Panel:
    if panel.kind == "number":
        made = stat.Panel().graph_mode(common_models.BigValueGraphMode.AREA)
    else:
        made = timeseries.Panel().line_width(1).show_points(common_models.VisibilityMode.NEVER)
        made.fill_opacity(30 if panel.kind == "stacked" else 5)
        if panel.kind == "stacked":
            made.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
        made.legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.TABLE)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        made.tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
    for index, (legend, expression) in enumerate(panel.queries.items()):
        query = prometheus.Dataquery().ref_id(chr(ord("A") + index)).expr(expression).legend_format(legend).range()
        made.with_target(query)
    made.links([dashboard.DashboardLink(title).url(url).target_blank(True) for title, url in links.items()])
    return (
        made.id(panel_id(panel.name))
        .title(panel.title)
        .description(panel.about)
        .unit(panel.unit)
        .datasource(DATASOURCE)
        .span(WIDTH)
        .height(HEIGHT)
    )
